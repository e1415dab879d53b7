from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from nightfill.observe.metrics import Metrics, Sample


def rendered(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_all_names_have_the_prefix_and_two_objects_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.client_left()
    assert all(name.startswith("nightfill_") for name, _ in rendered(first))
    assert rendered(first)["nightfill_clients_left_total", ()] == 1
    assert rendered(second)["nightfill_clients_left_total", ()] == 0


def test_a_promise_is_counted_with_what_came_of_it() -> None:
    metrics = Metrics()
    metrics.promise(planned=100, promised=90, broken=True, restore_s=0.01)
    metrics.promise(planned=50, promised=50, broken=False, restore_s=0)
    values = rendered(metrics)
    assert values["nightfill_promises_total", ()] == 2
    assert values["nightfill_planned_tokens_total", ()] == 150
    assert values["nightfill_promised_tokens_total", ()] == 140
    assert values["nightfill_broken_promises_total", ()] == 1
    assert values["nightfill_restore_seconds_count", ()] == 1


def test_time_to_first_token_has_vllms_buckets_by_layer() -> None:
    metrics = Metrics()
    metrics.ttft("demo", "fill", 0.03)
    values = rendered(metrics)
    label = (("layer", "fill"), ("le", "0.04"), ("model_name", "demo"))
    assert values["nightfill_time_to_first_token_seconds_bucket", label] == 1
    assert len([1 for name, _ in values if name == "nightfill_time_to_first_token_seconds_bucket"]) == 23


def test_figures_kept_by_others_are_read_at_each_scrape() -> None:
    metrics = Metrics()
    held = {"ram": 1.0, "disk": 2.0}
    metrics.watch(lambda: [Sample(name="kv_bytes", help="Held.", value=v, labels={"tier": k}) for k, v in held.items()])
    metrics.watch(lambda: [Sample(name="kv_hits", help="Hits.", value=7, kind="counter")])
    held["ram"] = 5.0
    values = rendered(metrics)
    assert values["nightfill_kv_bytes", (("tier", "ram"),)] == 5
    assert values["nightfill_kv_bytes", (("tier", "disk"),)] == 2
    assert values["nightfill_kv_hits_total", ()] == 7


def test_a_source_that_fails_costs_its_own_figures_only() -> None:
    metrics = Metrics()

    def broken() -> list[Sample]:
        raise OSError("gone")

    metrics.watch(broken)
    metrics.watch(lambda: [Sample(name="kv_hits", help="Hits.", value=7)])
    values = rendered(metrics)
    assert values["nightfill_kv_hits", ()] == 7
    assert values["nightfill_faults_total", (("where", "metrics"),)] == 1


def test_jobs_that_are_gone_count_as_none() -> None:
    metrics = Metrics()
    metrics.jobs({"queued": 3, "dead": 1}, failing=2)
    metrics.jobs({"queued": 0, "dead": 1}, failing=1)
    assert rendered(metrics)["nightfill_jobs", (("state", "queued"),)] == 0
    assert rendered(metrics)["nightfill_jobs_failing", ()] == 1
