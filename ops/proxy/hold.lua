-- Hold requests while the database is restarted on purpose (ops/restart.py). Two commands of the console:
--   hold SECONDS   new requests wait, at most this long; a hold ends by itself if its program vanishes
--   release        the requests that wait go on, in their order, one in a millisecond
-- Requests that are being answered go on; `show stat` counts them.

local VARIABLE = "proc.hold_until"
local POLL_MS = 20
local waiting = 0

core.register_cli({"hold"}, "hold SECONDS: let new requests wait", function(applet, _, seconds)
    local number = tonumber(seconds)
    local held_until = applet:get_var(VARIABLE)
    if not number then
        applet:send("hold: SECONDS must be a number\n")
    elseif held_until and core.now().sec < held_until then
        applet:send("hold: requests are already held\n")
    else
        waiting = 0
        applet:set_var(VARIABLE, core.now().sec + math.ceil(number))
        applet:send("held\n")
    end
end)

core.register_cli({"release"}, "release: let them go on", function(applet)
    applet:unset_var(VARIABLE)
    applet:send("released " .. waiting .. "\n")
end)

core.register_action("hold", {"http-req"}, function(txn)
    local held_until = txn:get_var(VARIABLE)
    if held_until and core.now().sec >= held_until then
        txn:unset_var(VARIABLE) -- the hold has ended without a release
        return
    end
    waiting = waiting + 1
    local place = waiting
    while held_until and core.now().sec < held_until do
        core.msleep(POLL_MS)
        held_until = txn:get_var(VARIABLE)
    end
    core.msleep(place) -- not all at once: the pools are empty
end)
