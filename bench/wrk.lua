-- A static request, so that wrk runs no Lua per request: all of it comes from the environment, set by load.py.
wrk.method = os.getenv("BENCH_METHOD")
local name = os.getenv("BENCH_HEADER_NAME")
if name then
  wrk.headers[name] = os.getenv("BENCH_HEADER_VALUE")
end
local file = os.getenv("BENCH_BODY")
if file then
  local handle = assert(io.open(file, "rb"))
  wrk.body = handle:read(tonumber(os.getenv("BENCH_SIZE")))
  handle:close()
elseif wrk.method == "PUT" then
  wrk.headers["Content-Length"] = "0"
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"micros":%d,"bytes":%d,"p50_us":%.1f,"p99_us":%.1f,'
      .. '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
