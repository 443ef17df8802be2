// The live page. Polls live.json and updates only what has changed in the document, so that focus, selection and the
// position of a screen reader survive. Data is inserted as text, never as markup.

const POLL_MS = 1000;
const TIMEOUT_MS = 3000;
const STALE_AFTER_SECONDS = 6; // three updates of the exporter

const SEGMENTS = {
  used: "in use",
  overflow: "in use as overflow",
  idle: "idle in pools",
  other: "open outside the pools",
  not_open: "allowed, not open",
  free: "free",
  reserved: "reserved",
};
const DURATIONS = {
  wait: "acquire a connection",
  use: "hold a connection",
  coalesce: "wait to share a statement",
  create: "open a connection",
  ping: "ping a connection",
};
const ICONS = { ok: "✓", firing: "▲", unknown: "?" };

const $ = (id) => document.getElementById(id);

/** Set the text of an element if it differs. */
function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

/** Create an element with a class and children, which are elements or text. */
function createElement(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/**
 * Make the children of `parent` match `items`, in their order. An item that had an element before keeps it.
 * @param {(item: any) => string} key @param {(item: any) => Element} create @param {(element: any, item: any) => void} update
 */
function reconcile(parent, items, key, create, update) {
  const previous = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = previous.get(name);
    previous.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
    update(element, item);
  }
  for (const element of previous.values()) element.remove();
}

const plural = (number, one, many = `${one}s`) => `${number} ${Math.abs(number) === 1 ? one : many}`;

function formatDuration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${seconds.toFixed(1)} s`;
}

function formatAge(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const formatRate = (value) =>
  value == null ? "–" : value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
const formatBytes = (bytes) => (bytes == null ? "–" : `${Math.round(bytes / 1e6)} MB`);

// ---- sections of the page ----

function renderHero(data) {
  const tightest = data.limits.reduce((a, b) => (b.headroom < a.headroom ? b : a));
  const over = tightest.headroom < 0;
  const noun = Math.abs(tightest.headroom) === 1 ? "connection" : "connections";
  setText($("headroom"), String(tightest.headroom).replace("-", "−"));
  setText($("headroom-label"), `${noun} left${over ? " (over budget)" : ""}`);
  $("headroom").parentElement.dataset.state = over ? "over" : "within";
  const open = tightest.observed == null ? "an unknown number" : tightest.observed;
  const waiting = data.pools.pending
    ? ` ${plural(data.pools.pending, "request is", "requests are")} waiting for a connection.`
    : "";
  setText(
    $("hero-detail"),
    `Open now: ${open} of ${tightest.supply} ${tightest.name}. The settings allow up to ${tightest.demand}.${waiting}`,
  );
  const used = `${data.pools.used}/${data.pools.max}`;
  document.title = over ? "OVER BUDGET · Headroom" : `${tightest.headroom} free · ${used} in use · Headroom`;
  $("remarks").hidden = data.remarks.length === 0;
  reconcile($("remarks"), data.remarks, (text) => text, () => createElement("li"), setText);
}

/** Render a bar of segments whose widths are proportional to their connections. */
function renderBar(bar, segments) {
  reconcile(
    bar,
    segments,
    (segment) => segment.key,
    (segment) => createElement("span", segment.key),
    (element, segment) => {
      element.style.flexGrow = segment.connections; // set by script: the security policy forbids style attributes
      element.hidden = segment.connections === 0;
    },
  );
}

function renderLimits(limits) {
  reconcile(
    $("limits"),
    limits,
    (limit) => limit.name,
    () => {
      const bar = createElement("div", "bar");
      bar.setAttribute("aria-hidden", "true"); // the legend has the same numbers as text
      const details = createElement(
        "details",
        "",
        createElement("summary", "", "Calculation"),
        createElement("p"),
        createElement("code"),
      );
      return createElement(
        "div",
        "limit",
        createElement("h3", "", createElement("b"), createElement("span")),
        bar,
        createElement("ul", "legend"),
        details,
      );
    },
    (element, limit) => {
      const [heading, bar, legend, details] = element.children;
      setText(heading.firstElementChild, limit.name[0].toUpperCase() + limit.name.slice(1));
      const balance = limit.ok ? `${limit.headroom} left` : `${-limit.headroom} too many`;
      setText(heading.lastElementChild, `Demand ${limit.demand} of ${limit.supply}, ${balance}`);
      renderBar(bar, limit.segments);
      reconcile(
        legend,
        limit.segments.filter((segment) => segment.connections > 0 || segment.key === "used"),
        (segment) => segment.key,
        (segment) =>
          createElement(
            "li",
            "",
            createElement("i", segment.key),
            createElement("span", "", SEGMENTS[segment.key]),
            createElement("b"),
          ),
        (item, segment) => setText(item.lastElementChild, segment.connections),
      );
      setText(details.children[1], limit.terms.map((term) => `${term.name} ${term.connections}`).join(" · "));
      setText(details.children[2], limit.formula);
    },
  );
}

function renderConditions(conditions) {
  const rank = { firing: 0, unknown: 1, ok: 2 };
  const sorted = [...conditions].sort((a, b) => rank[a.state] - rank[b.state]);
  const firing = sorted.filter((condition) => condition.state === "firing").map((condition) => condition.name);
  setText($("hero-alert"), firing.join(" · ")); // screen readers announce changes of it
  setText($("conditions-summary"), `${firing.length} of ${conditions.length} firing`);
  reconcile(
    $("conditions"),
    sorted,
    (condition) => condition.name,
    () => {
      const icon = createElement("span", "icon");
      icon.setAttribute("role", "img");
      return createElement(
        "li",
        "",
        createElement("div", "condition-head", icon, createElement("span", "label"), createElement("span", "value")),
        createElement("p", "explanation"),
      );
    },
    (element, condition) => {
      const [icon, label, value] = element.firstElementChild.children;
      element.dataset.state = condition.state;
      element.dataset.severity = condition.severity;
      icon.setAttribute("aria-label", condition.state);
      setText(icon, ICONS[condition.state]);
      setText(label, condition.name);
      element.title = `${condition.summary}.`;
      setText(value, condition.value);
      const explanation = element.lastElementChild;
      explanation.hidden = condition.state !== "firing";
      setText(explanation, `${condition.summary}. ${condition.next_step}`);
    },
  );
}

/** Describe the lanes: what runs, what waits, and what was refused. */
function renderLanes(lanes, moved) {
  const texts = lanes.map((lane) => {
    const refused = lane.shed_per_second ? `, ${formatRate(lane.shed_per_second)} refused per second` : "";
    return `${lane.name} ${lane.running} running of ${lane.limit}, ${lane.waiting} waiting${refused}`;
  });
  const because = moved ? ` In all workers, ${plural(moved, "statement is", "statements are")} expensive by their cost.` : "";
  setText($("lanes"), `Lanes: ${texts.join("; ")}.${because}`);
}

/** Describe what shared statements; an empty string if nothing did. */
function sharedText(what, perSecond, statementsPerSecond) {
  if (!statementsPerSecond) return "";
  const each = (perSecond / statementsPerSecond).toFixed(1);
  return `${formatRate(perSecond)} ${what} per second in ${formatRate(statementsPerSecond)} shared statements, ${each} each.`;
}

function renderDurations(durations, coalescing) {
  const texts = [
    sharedText("reads", coalescing.reads_per_second, coalescing.statements_per_second),
    sharedText("rows to insert", coalescing.writes_per_second, coalescing.write_statements_per_second),
  ];
  setText($("coalescing"), texts.filter(Boolean).join(" ") || "No reads and no writes shared a statement.");
  reconcile(
    $("durations"),
    durations,
    (row) => row.key,
    (row) => {
      const name = createElement("th", "", DURATIONS[row.key]);
      name.scope = "row";
      const cells = [1, 2, 3].map(() => createElement("td", "number"));
      return createElement("tr", "", name, ...cells);
    },
    (element, row) => {
      const [, p50, p99, perSecond] = element.children;
      setText(p50, formatDuration(row.p50));
      setText(p99, formatDuration(row.p99));
      setText(perSecond, formatRate(row.per_second));
    },
  );
}

/** Describe how the count of the server, or of PgBouncer, differs from that of the pools. */
function describeDifference(difference) {
  if (difference == null) return "";
  if (difference === 0) return " The server side counts the same number.";
  return ` The server side counts ${Math.abs(difference)} ${difference > 0 ? "more" : "fewer"}.`;
}

function renderWorkers(workers, pools, server, now) {
  setText(
    $("workers-summary"),
    workers.length
      ? `${plural(workers.length, "worker")} with ${pools.used + pools.idle} of ${pools.max} connections open.` +
          describeDifference(server?.disagreement)
      : "No worker reports metrics. Check that the API is running and uses the same METRICS_DIR.",
  );
  reconcile(
    $("workers"),
    workers,
    (worker) => `${worker.replica}/${worker.worker}`,
    (worker) => {
      const row = createElement("tr");
      const replica = createElement("th", "", worker.replica);
      replica.scope = "row";
      const bar = createElement("div", "bar small");
      bar.setAttribute("aria-hidden", "true");
      row.append(replica, createElement("td", "", worker.worker), createElement("td", "", bar));
      for (let column = 0; column < 7; column += 1) row.append(createElement("td", "number"));
      return row;
    },
    (row, worker) => {
      const cells = [...row.children];
      const overflow = Math.max(0, worker.used - worker.size);
      renderBar(cells[2].firstElementChild, [
        { key: "used", connections: worker.used - overflow },
        { key: "overflow", connections: overflow },
        { key: "idle", connections: worker.idle },
        { key: "not_open", connections: Math.max(0, worker.max - worker.used - worker.idle) },
      ]);
      [
        worker.used,
        worker.idle,
        worker.max,
        worker.pending,
        worker.in_flight ?? "–",
        formatBytes(worker.memory_bytes),
        worker.started == null ? "–" : formatAge(now - worker.started),
      ].forEach((value, index) => setText(cells[index + 3], value));
      cells[3].classList.toggle("alarm", worker.used >= worker.max);
      cells[6].classList.toggle("alarm", worker.pending > 0);
    },
  );
}

// ---- charts ----

const WIDTH = 300;
const HEIGHT = 80;
const CHARTS = [
  { key: "open", title: "Open connections", format: (value) => value, secondKey: "used", showMaximum: true },
  { key: "pending", title: "Requests waiting", format: (value) => value },
  { key: "checkouts_per_second", title: "Checkouts per second", format: formatRate },
  { key: "wait_p99", title: "Time to acquire a connection, p99", format: formatDuration },
];

/** Return an SVG path through the values. A null is a gap. */
function svgPath(values, top) {
  const step = WIDTH / Math.max(1, values.length - 1);
  let command = "M";
  let path = "";
  values.forEach((value, index) => {
    if (value == null) {
      command = "M";
      return;
    }
    path += `${command}${(index * step).toFixed(1)} ${(HEIGHT - 3 - (value / top) * (HEIGHT - 8)).toFixed(1)}`;
    command = "L";
  });
  return path;
}

function renderCharts(history, pools) {
  reconcile(
    $("charts"),
    CHARTS,
    (chart) => chart.key,
    (chart) => {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("class", "chart");
      svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true"); // the caption has the same values as text
      for (const line of ["maximum", "secondary", "primary"]) {
        const element = document.createElementNS("http://www.w3.org/2000/svg", "path");
        element.setAttribute("class", line);
        svg.append(element);
      }
      const caption = createElement("figcaption", "", createElement("b", "", chart.title), createElement("span"));
      return createElement("figure", "", caption, svg);
    },
    (figure, chart) => {
      const values = history[chart.key] ?? [];
      const known = values.filter((value) => value != null);
      const top = Math.max(0, ...known, chart.showMaximum ? pools.max : 0) || 1;
      const now = values.at(-1);
      const second = chart.secondKey ? ` (${history[chart.secondKey].at(-1) ?? "–"} in use)` : "";
      const range = `${chart.format(Math.min(...known))} to ${chart.format(Math.max(...known))}`;
      setText(
        figure.querySelector("span"),
        known.length ? `now ${now == null ? "–" : chart.format(now)}${second}, range ${range}` : "no data",
      );
      const [maximum, secondary, primary] = figure.querySelectorAll("path");
      // With two series, the muted line is the total.
      primary.setAttribute("d", svgPath(chart.secondKey ? history[chart.secondKey] : values, top));
      secondary.setAttribute("d", chart.secondKey ? svgPath(values, top) : "");
      maximum.setAttribute("d", chart.showMaximum && pools.max ? svgPath([pools.max, pools.max], top) : "");
    },
  );
}

// ---- polling ----

let lastTime = null;
let lastUpdate = performance.now();

function render(data) {
  if (data.time == null || data.limits == null) return; // the exporter has just started
  if (data.time === lastTime) return;
  lastTime = data.time;
  lastUpdate = performance.now();
  renderHero(data);
  renderLimits(data.limits);
  renderConditions(data.conditions);
  renderDurations(data.durations, data.coalescing);
  renderLanes(data.lanes, data.moved_statements);
  renderWorkers(data.workers, data.pools, data.server, data.time);
  renderCharts(data.history, data.pools);
  const failing = data.collectors.filter((collector) => !collector.success).map((collector) => collector.name);
  setText($("collectors"), failing.length ? `Failing collectors: ${failing.join(", ")}` : "All collectors succeed");
  setText($("version"), data.version);
}

/** Show the age of the data by this browser's clock, because the exporter's clock may differ. */
function renderFreshness() {
  const seconds = (performance.now() - lastUpdate) / 1000;
  const stale = seconds > STALE_AFTER_SECONDS;
  const status = $("status");
  document.documentElement.toggleAttribute("data-stale", stale);
  status.dataset.state = stale ? "stale" : lastTime == null ? "connecting" : "live";
  if (stale) {
    // In steps of ten seconds, because a screen reader announces each change.
    const rounded = seconds < 10 ? Math.round(seconds) : Math.floor(seconds / 10) * 10;
    setText(
      status,
      lastTime == null ? "no response from the exporter" : `stale: last update ${formatAge(rounded)} ago`,
    );
    if (!document.title.startsWith("STALE")) document.title = `STALE · ${document.title}`;
  } else {
    setText(status, lastTime == null ? "connecting" : "live");
    if (document.title.startsWith("STALE")) document.title = document.title.replace("STALE · ", "");
  }
}

async function poll() {
  if (!document.hidden) {
    try {
      const response = await fetch("live.json", { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" });
      if (response.ok) render(await response.json());
    } catch (error) {
      // renderFreshness() reports network errors and time-outs when they last. Other errors are bugs of this page.
      if (!(error instanceof TypeError || error instanceof DOMException || error instanceof SyntaxError)) throw error;
    }
    renderFreshness();
  }
  setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) lastUpdate = performance.now(); // a page in the background is not stale: let it poll first
});
poll();
