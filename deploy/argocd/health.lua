-- Health of every kind of foreshore.dev: all carry the same conditions.
--
-- Whether machines are reachable and data flows (the condition Healthy) is told and not judged: a synchronisation must not
-- wait for a machine that is switched off.
local function condition(type)
  for _, found in ipairs(obj.status and obj.status.conditions or {}) do
    if found.type == type then
      return found
    end
  end
  return {}
end

local function health(status, message)
  return { status = status, message = message }
end

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", "it is being deleted")
end
if obj.status == nil or obj.status.observedGeneration == nil then
  return health("Progressing", "the operator has not seen it yet")
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "the operator has not seen its last change yet")
end

local stalled = condition("Stalled")
if stalled.status == "True" then
  return health("Degraded", stalled.message)
end
local reconciling = condition("Reconciling")
if reconciling.status == "True" then
  return health("Progressing", reconciling.message)
end
local ready = condition("Ready")
if ready.status ~= "True" then
  return health("Progressing", ready.message or "the operator has not judged it yet")
end
local healthy = condition("Healthy")
if healthy.status == "False" then
  return health("Healthy", "in force; " .. healthy.reason .. ": " .. healthy.message)
end
return health("Healthy", ready.message)
