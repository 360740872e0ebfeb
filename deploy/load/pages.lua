-- Pages for wrk: first pages, deep ones and searches in turn, each with its total. See docs/load-test.md.
--
--   wrk -t1 -c16 -d30s --latency -s deploy/load/pages.lua -H "Coder-Session-Token: $TOKEN" \
--     http://127.0.0.1:8080/api/v2/aibridge/interceptions
--
-- LOAD_TOTAL, a number of interceptions that there are, says how deep the pages lie: 10,000 by default.

local limit = 25
local total = tonumber(os.getenv("LOAD_TOTAL") or "10000")
local searches = {
  "provider:anthropic",
  "provider:openai",
  "client:%22Claude%20Code%22",
  "client:Codex",
  "model:claude-sonnet-4-6",
}
local turn = 0
local statuses = {}

function init(_)
  math.randomseed(os.time())
end

function request()
  turn = turn + 1
  local query = "?limit=" .. limit
  if turn % 4 == 2 then
    query = query .. "&offset=" .. math.random(0, total - 1)
  elseif turn % 4 == 0 then
    query = query .. "&q=" .. searches[math.random(#searches)]
  end
  return wrk.format("GET", wrk.path .. query)
end

-- The threads have memories of their own: each reports what it met.
function response(status, _, body)
  if status ~= 200 and not statuses[status] then
    statuses[status] = true
    io.stderr:write("status " .. status .. ": " .. string.sub(body, 1, 200) .. "\n")
  end
end
