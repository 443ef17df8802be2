-- The end of every certificate that the proxy uses now, as a metric. HAProxy's own metrics do not have it. The console
-- knows also those that were given to it while it runs: `make certificate`, and compose.acme.yml.

local METRIC = "proxy_certificate_expiry_timestamp_seconds"

local function console(command)
    local connection = core.tcp()
    connection:settimeout(2)
    if not connection:connect("127.0.0.1", 9999) then
        error("the console does not answer")
    end
    connection:send(command .. "\n")
    local answer = connection:receive("*a")
    connection:close()
    return answer or ""
end

local function label(value)
    return '"' .. value:gsub("\\", "\\\\"):gsub('"', '\\"') .. '"'
end

core.register_service("certificates", "http", function(applet)
    local lines = {
        "# HELP " .. METRIC .. " End of a certificate, in seconds since 1970.",
        "# TYPE " .. METRIC .. " gauge",
    }
    for certificate in console("show ssl cert"):gmatch("[^\n]+") do
        -- A line with "#" is a comment, with "*" a certificate that is not in use yet.
        if not certificate:find("^[#*]") then
            local shown = console("show ssl cert " .. certificate)
            local ends = shown:match("notAfter: (.-) GMT")
            local names = shown:match("Subject Alternative Name: ([^\n]-),? *\n") or ""
            if ends then
                -- The parser wants a weekday, but does not look at it.
                local labels = "{certificate=" .. label(certificate) .. ",names=" .. label(names) .. "} "
                table.insert(lines, METRIC .. labels .. core.asctime_date("Sun " .. ends))
            end
        end
    end
    local body = table.concat(lines, "\n") .. "\n"
    applet:set_status(200)
    applet:add_header("content-type", "text/plain; version=0.0.4")
    applet:add_header("content-length", tostring(#body))
    applet:start_response()
    applet:send(body)
end)
