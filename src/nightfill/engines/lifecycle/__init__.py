"""Models that sleep: several of them on one device, awake when somebody needs them.

`state` has the states and what may follow what. `policy` decides who is to wake and who has to give way: pure, by
`room` on each device and `levels` of sleep, over the records in `view`. `waiting` holds the requests of models that are
not awake. `lifecycle` is the one loop that owns the states of its models, and does what was decided by `acts`, through
each model's `Sleeper`. `sleeping` is an `Engine` that wakes when it is asked something.
"""
