// The bid server's page: every campaign's day, and for one of them spend, bids, cost per conversion, and why.
const words = {
  en: { tagline: "bids decided by", campaigns: "Campaigns", spend: "Spend over the day", spent: "spent", plan: "plan", budget: "budget", bids: "Bid per conversion", multiplier: "multiplier", cpa: "Cost per conversion",
        expected: "expected", realised: "realised", limit: "limit", detail: "The decision", key: "API key", open: "Open", kill: "Stop all bids", unkill: "Bids are stopped: start again", pause: "Pause", resume: "Resume",
        available: "available", reserved: "reserved", wins: "wins", conversions: "conversions", bidsMade: "bids", none: "No decision yet.", of: "of", binding: "Binding", source: "Decided by", asked: "Asked for", more: "10% more", shadows: "Shadows", kept: "Kept from bidding", standby: "Standby (safe pacing)", late: "Late / disputed",
        running: "running", paused: "paused", killed: "killed", noData: "nothing yet" },
  zh: { tagline: "出价控制器", campaigns: "广告计划", spend: "当日消耗", spent: "已消耗", plan: "计划", budget: "预算", bids: "单次转化出价", multiplier: "出价系数", cpa: "转化成本",
        expected: "预估", realised: "实际", limit: "上限", detail: "本次决策", key: "API 密钥", open: "打开", kill: "停止全部出价", unkill: "出价已停止：恢复", pause: "暂停", resume: "恢复",
        available: "可用", reserved: "预留", wins: "竞得", conversions: "转化", bidsMade: "出价次数", none: "尚无决策。", of: "/", binding: "约束", source: "决策来源", asked: "控制器要求", more: "出价 +10%", shadows: "影子控制器", kept: "未出价原因", standby: "备用（最小步调）", late: "迟到 / 争议",
        running: "投放中", paused: "已暂停", killed: "已停止", noData: "暂无" },
};
let language = navigator.language?.startsWith("zh") ? "zh" : "en", chosen = decodeURIComponent(location.hash.slice(1)) || null, killed = false, last = [];
const $ = (id) => document.getElementById(id), t = (word) => words[language][word] ?? word, NS = "http://www.w3.org/2000/svg";
const make = (tag, name, text) => { const e = document.createElement(tag); if (name) e.className = name; if (text !== undefined) e.textContent = text; return e; };
const draw = (tag, own) => { const e = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(own)) if (k === "text") e.textContent = v; else e.setAttribute(k, v); return e; };
const money = (micros) => micros == null ? "–" : (micros / 1e6).toLocaleString(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const short = (v) => Math.abs(v) >= 1e6 ? `${(v / 1e6).toFixed(1)}M` : Math.abs(v) >= 1e4 ? `${Math.round(v / 1e3)}k` : Math.abs(v) >= 100 ? Math.round(v).toLocaleString() : v.toFixed(Math.abs(v) >= 10 ? 1 : 2);
const percent = (x) => `${x >= 0 ? "+" : ""}${(100 * x).toFixed(0)}%`;

function translate() {
  document.documentElement.lang = language;
  for (const e of document.querySelectorAll("[data-t]")) e.textContent = t(e.dataset.t);
  $("language").textContent = language === "en" ? "中文" : "English";
}

async function call(path, method, body) {
  const headers = { "content-type": "application/json" }, key = sessionStorage.getItem("key");
  if (key) headers["x-api-key"] = key;
  const reply = await fetch(path, { method: method ?? "GET", headers, body: body && JSON.stringify(body) });
  const json = await reply.json();
  if (reply.status === 401) $("key").hidden = false;
  if (!reply.ok) throw new Error([json.message, json.action].filter(Boolean).join("\n"));
  $("key").hidden = true;
  return json;
}

const total = (arms, name) => arms.reduce((sum, arm) => sum + (arm[name] ?? 0), 0);

function card(c) {
  const b = make("button", `card campaign${c.campaign_id === chosen ? " chosen" : ""}`); b.type = "button";
  const left = make("div"), side = make("div", "side"), spent = total(c.arms, "spent_micros"), budget = total(c.arms, "budget_micros") || c.budget_micros;
  left.append(make("strong", "", c.name || c.campaign_id), make("small", "", `${c.campaign_id} · ${t(c.status)}`));
  side.append(make("div", "", money(spent)), make("div", "", `${t("of")} ${money(budget)}`));
  const meter = draw("svg", { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none" }), passed = c.arms[0] ? (100 * c.arms[0].tick) / c.n_ticks : 0;
  meter.append(draw("rect", { class: "track", width: 100, height: 6, rx: 1 }), draw("rect", { class: "fill", width: Math.min(100, (100 * spent) / budget), height: 6, rx: 1 }), draw("rect", { class: "tick", x: passed, width: .6, height: 6 }));
  b.append(left, side, meter);
  b.addEventListener("click", () => { chosen = c.campaign_id; history.replaceState(null, "", `#${encodeURIComponent(chosen)}`); refresh(); });
  const li = make("li"); li.append(b); return li;
}

// One small line chart: series of [class, values by tick], areas, bars; y from zero; hours of the day below.
function plot(svg, { n, now, lines = [], area, bars, level, width = 640, height = 170, format = short }) {
  const left = 46, right = 8, top = 8, bottom = 18, w = width - left - right, h = height - top - bottom;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`); svg.replaceChildren();
  const values = lines.flatMap(([, own]) => own).concat(level ?? []).filter((v) => v != null && Number.isFinite(v));
  const peak = Math.max(...values, 0);
  if (!peak) { svg.append(draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle", text: t("noData") })); return; }
  const step = [1, 2, 2.5, 5, 10].map((m) => m * 10 ** Math.floor(Math.log10(peak / 3))).find((s) => peak / s <= 4) ?? peak, roof = Math.ceil((peak * 1.02) / step) * step;
  const x = (k) => left + (w * k) / n, y = (v) => top + h - (h * v) / roof;
  for (let v = 0; v <= roof + step / 2; v += step) svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }), draw("text", { x: left - 6, y: y(v) + 3.5, "text-anchor": "end", text: format(v) }));
  for (let hour = 0; hour <= 24; hour += 6) svg.append(draw("text", { x: x((n * hour) / 24), y: height - 4, "text-anchor": hour === 0 ? "start" : hour === 24 ? "end" : "middle", text: `${hour}:00` }));
  if (bars) { const most = Math.max(...bars, 1); bars.forEach((v, k) => v && svg.append(draw("rect", { class: "bar", x: x(k) + .5, width: Math.max(w / n - 1, 1), y: top + h - (.5 * h * v) / most, height: (.5 * h * v) / most }))); }
  const path = (own, at = (k) => x(k)) => { let pen = ""; return own.map((v, k) => { if (v == null || !Number.isFinite(v)) { pen = ""; return ""; } const part = `${pen ? "L" : "M"}${at(k).toFixed(1)},${y(v).toFixed(1)}`; pen = "L"; return part; }).join(""); };
  if (area?.length) svg.append(draw("path", { class: "area", d: `${path(area)}L${x(area.length - 1)},${y(0)}L${x(0)},${y(0)}Z` }));
  if (level != null) svg.append(draw("line", { class: "budget", x1: left, x2: width - right, y1: y(level), y2: y(level) }));
  if (now != null) svg.append(draw("line", { class: "now", x1: x(now), x2: x(now), y1: top, y2: top + h }));
  for (const [name, own, at] of lines) svg.append(draw("path", { class: name, d: path(own, at && ((k) => x(at + k))) }));
}

const sums = (own) => own.reduce((all, v) => [...all, (all.at(-1) ?? 0) + v], []);

function show(c, day, why) {
  $("one").hidden = false; $("name").textContent = c.name || c.campaign_id; $("status").textContent = t(c.status);
  $("pause").textContent = t(c.status === "running" ? "pause" : "resume");
  $("pause").onclick = () => act(() => call(`/v1/campaigns/${encodeURIComponent(chosen)}`, "PATCH", { status: c.status === "running" ? "paused" : "running" }));
  $("why").textContent = why?.text ?? t("none");
  const figures = [[money(total(c.arms, "spent_micros")), t("spent")], [money(total(c.arms, "reserved_micros")), t("reserved")], [money(total(c.arms, "available_micros")), t("available")],
    [total(c.arms, "bids").toLocaleString(), t("bidsMade")], [total(c.arms, "wins").toLocaleString(), t("wins")], [`${total(c.arms, "conversions")} / ${total(c.arms, "expected_conversions").toFixed(1)}`, `${t("conversions")} / ${t("expected")}`]];
  $("figures").replaceChildren(...figures.map(([b, s]) => { const d = make("div"); d.append(make("b", "", b), make("span", "", s)); return d; }));
  const n = day.n_ticks, s = day.series, now = day.tick;
  if (!s.spend) { for (const id of ["plot-spend", "plot-bids", "plot-cpa"]) plot($(id), { n }); }
  else {
    const spend = [0, ...sums(s.spend.slice(0, now))].map((v) => v / 1e6); spend[now] += s.spend[now] / 1e6; const ahead = [0, ...sums(day.plan)].map((v) => v / 1e6 + spend[now]);
    plot($("plot-spend"), { n, now, area: spend, level: day.budget_micros / 1e6, lines: [["a", spend], ["dash", ahead.slice(0, n - now + 1), now]], width: 900, height: 190 });
    plot($("plot-bids"), { n, now, bars: s.volume, lines: [["a", s.multiplier.slice(0, now + 1).map((v) => v ? v / 1e6 : null), .5]], width: 440 });
    const cost = sums(s.spend), value = sums(s.value), real = sums(s.conversions), ratio = (by, scale) => cost.slice(0, now + 1).map((v, k) => by[k] > 0 ? v / 1e6 / (by[k] / scale) : null);
    plot($("plot-cpa"), { n, now, level: day.target_cpa_micros && day.target_cpa_micros / 1e6, lines: [["a", ratio(value, 1e9), 1], ["b", ratio(real, 1), 1]], width: 440 });
  }
  const rows = [];
  if (why) {
    const more = why.ten_percent_more;
    rows.push([t("binding"), why.binding], [t("source"), `${why.controller} · ${why.source}${why.fallback_reason ? ` · ${why.fallback_reason}` : ""}`], [t("multiplier"), money(why.multiplier_micros)], [t("asked"), `${money(why.proposed_micros)}${why.limited_by.length ? ` · ${why.limited_by.join("; ")}` : ""}`], [t("standby"), money(why.standby_micros)]);
    rows.push([t("more"), more.basis === "none" ? "–" : `${t("spent")} ${percent(more.spend)}, ${t("conversions")} ${percent(more.conversions)}${more.marginal_cpa_micros ? `, ${money(more.marginal_cpa_micros)} / ${t("conversions")}` : ""} (${more.basis})`]);
    if (Object.keys(why.shadows).length) rows.push([t("shadows"), Object.entries(why.shadows).map(([k, v]) => `${k} ${money(v)}`).join(" · ")]);
    rows.push([t("late"), `${money(why.state.late_micros)} / ${money(why.state.disputed_micros)}`]);
    const kept = Object.entries(why.kept_from_bidding); if (kept.length) rows.push([t("kept"), kept.map(([k, v]) => `${k} ${v.toLocaleString()}`).join(" · ")]);
  }
  $("detail").replaceChildren(...rows.flatMap(([k, v]) => [make("dt", "", k), make("dd", "", v)]));
}

async function refresh() {
  try {
    const all = await call("/v1/campaigns"); killed = all.killed; last = all.campaigns;
    $("kill").hidden = false; $("kill").textContent = t(killed ? "unkill" : "kill"); $("kill").classList.toggle("on", killed);
    chosen = last.some((c) => c.campaign_id === chosen) ? chosen : last[0]?.campaign_id;
    $("campaigns").replaceChildren(...last.map(card));
    if (chosen) {
      const path = `/v1/campaigns/${encodeURIComponent(chosen)}`;
      const [day, why] = await Promise.all([call(`${path}/series`), call(`${path}/explain`).catch(() => null)]);
      show(last.find((c) => c.campaign_id === chosen), day, why);
    }
    $("problem").hidden = true;
  } catch (error) { $("problem").textContent = error.message; $("problem").hidden = false; }
}

async function act(what) { try { await what(); await refresh(); } catch (error) { $("problem").textContent = error.message; $("problem").hidden = false; } }

$("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; translate(); refresh(); });
$("kill").addEventListener("click", () => act(() => call("/v1/kill", "POST", { on: !killed })));
$("key").addEventListener("submit", (event) => { event.preventDefault(); sessionStorage.setItem("key", $("secret").value); refresh(); });
translate();
if (document.body.dataset.needsKey === "1" && !sessionStorage.getItem("key")) $("key").hidden = false;
await refresh();
setInterval(refresh, 5000);
