"""Every span, attribute and metric name, so that dashboards and code cannot drift apart.

`gen_ai.*` follow the OpenTelemetry conventions for generative AI; `fathom.*` are ours. No metric
is labelled by run.
"""

# Spans.
SPAN_INVOKE_AGENT = "invoke_agent"
SPAN_CHAT = "chat"
SPAN_CHAT_ATTEMPT = "chat.attempt"
SPAN_EXECUTE_TOOL = "execute_tool python"

# Attributes of the conventions.
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_TOOL_NAME = "gen_ai.tool.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_REQUEST_SEED = "gen_ai.request.seed"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_TOKEN_TYPE = "gen_ai.token.type"
ERROR_TYPE = "error.type"
HTTP_STATUS_CODE = "http.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
RPC_SYSTEM = "rpc.system"
RPC_SERVICE = "rpc.service"
RPC_METHOD = "rpc.method"
RPC_STATUS_CODE = "rpc.grpc.status_code"

# Attributes of ours.
RUN_ID = "fathom.run.id"
DEPTH = "fathom.depth"
TURN = "fathom.turn"
CELL = "fathom.cell"
TIER = "fathom.tier"
BATCH_INDEX = "fathom.batch.index"
COST_USD = "fathom.cost.usd"
ATTEMPT = "fathom.attempt"
STATUS = "status"
KIND = "kind"
MODEL = "model"

# Metrics of the conventions.
METRIC_CLIENT_OPERATION_DURATION = "gen_ai.client.operation.duration"
METRIC_CLIENT_TOKEN_USAGE = "gen_ai.client.token.usage"
METRIC_RPC_SERVER_DURATION = "rpc.server.duration"

# Metrics of ours.
METRIC_RUNS = "fathom.runs"
METRIC_RUN_DURATION = "fathom.run.duration"
METRIC_RUNS_ACTIVE = "fathom.runs.active"
METRIC_SUBCALLS = "fathom.subcalls"
METRIC_COST_USD = "fathom.cost.usd"
METRIC_LIMIT_HIT = "fathom.limit.hit"
METRIC_QUEUE_WAIT = "fathom.queue.wait"
METRIC_SANDBOX_EXEC_DURATION = "fathom.sandbox.exec.duration"
METRIC_SANDBOX_SESSIONS = "fathom.sandbox.sessions"
METRIC_GATEWAY_UPSTREAM = "fathom.gateway.upstream"
