-- The requests of `serving.py --wrk`, for wrk (https://github.com/wg/wrk): each answer is checked against its image.
--
-- wrk -t1 -c64 -d60s -s serving_wrk.lua http://127.0.0.1:8080 -- LIST
--
-- Each line of LIST is the path of an image, its best class and the score of it, divided by tabs. A request carries the
-- number of its image as X-Request-Id, which the server sends back.

local TOLERANCE = 2e-3 -- of a score; batches of other sizes may add up in another order
local bodies, expected, sent = {}, {}, 0
right, wrong, refused = 0, 0, 0 -- global: `done` reads them
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  for line in io.lines(args[1]) do
    local path, label, score = line:match("^(.-)\t(.-)\t(.-)$")
    local file = assert(io.open(path, "rb"))
    table.insert(bodies, file:read("*a"))
    table.insert(expected, { label = label, score = tonumber(score) })
    file:close()
  end
end

function request()
  sent = sent + 1
  local number = sent % #bodies + 1
  local headers = { ["Content-Type"] = "image/jpeg", ["X-Request-Id"] = tostring(number) }
  return wrk.format("POST", "/v1/classify", headers, bodies[number])
end

function response(status, headers, body)
  if status ~= 200 then
    refused = refused + 1
    return
  end
  local one
  for name, value in pairs(headers) do
    if name:lower() == "x-request-id" then
      one = expected[tonumber(value)]
    end
  end
  local label, score = body:match('"label"%s*:%s*"(.-)"%s*,%s*"score"%s*:%s*([%d.e+-]+)')
  if one and label == one.label and math.abs(tonumber(score) - one.score) < TOLERANCE then
    right = right + 1
  else
    wrong = wrong + 1
  end
end

function done(summary, latency, requests)
  local told = { right = 0, wrong = 0, refused = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(told) do
      told[name] = told[name] + thread:get(name)
    end
  end
  local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  print(string.format(
    '{"images/s": %.3f, "p50 ms": %.3f, "p99 ms": %.3f, "right": %d, "mixed up": %d, "refused": %d, "lost": %d}',
    1e6 * summary.requests / summary.duration, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    told.right, told.wrong, told.refused, errors
  ))
end
