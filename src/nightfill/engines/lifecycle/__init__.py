"""Models that sleep: several of them on one device, awake when somebody needs them.

`state` has the states and what may follow what, `policy` decides who is to wake and who has to give way (pure),
`waiting` holds the requests of models that are not awake, `lifecycle` is the one loop that owns the states and acts
through each model's `Sleeper`, and `sleeping` is an `Engine` that wakes when it is asked something.
"""
