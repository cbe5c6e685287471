// The page: one person, what the model generates for them, and how the beam got there.
const words = {
  en: { tagline: "One generative model over", items: "items", people: "people", person: "Person", filter: "Filter", search: "Search", go: "Generate",
        another: "Another person", history: "What they did", generated: "What the model generates", beam: "How the beam got there",
        beamHint: "Level by level: the codes that survive, what they mean, how likely the generator is to write them, and how many items they lead to. Point at a generated card to see its way; click it to take it: the list reacts.",
        shares: "Two percentages: on a card, the item's share of the score of everything generated for this list, after selection, memory and refiner; here, the probability with which the generator alone writes these codes.",
        ofScore: "of the list's score", seenBefore: "seen before", columnCodes: "codes and what they mean", columnNumbers: "generator probability · items",
        noCurrency: "price", least: "Least relevance, %", relevance: "chance that it is taken", readAs: "Read as", unknownWords: "Unknown words", matches: "items match",
        noWord: "No item that may be shown matches this search: the list is by meaning and history.", noneRelevant: "Nothing is relevant enough for this search.", why: "Why is it here?",
        wordIn: "in", title: "title", brand: "brand", category: "category", attributes: "attributes", searches: "earlier searches", nowhere: "nowhere", ofQuery: "of the query", dropped: "beam dropped it",
        partsHead: "Score above the list's mean, nats", refinerHead: "What the refiner goes by", codesHead: "Code by code", wordsHead: "Words",
        none: "Nothing yet: the model falls back on what people in general take first.", nothing: "Nothing can be generated.", level: "Level", legal: "legal continuations",
        simulated: "simulated", key: "This server asks for its API key", keyGo: "Use it", took: "generated in", more: "more", stranger: "no history of this person", examples: "Try",
        "catalogue": "in the catalogue", "passes the filter": "pass the filter", "not seen or excluded": "may be shown", "generated ": "generated", "shown": "shown" },
  zh: { tagline: "一个生成模型，", items: "件物品", people: "位用户", person: "用户", filter: "过滤条件", search: "搜索", go: "生成",
        another: "换一位用户", history: "历史行为", generated: "模型生成的列表", beam: "束搜索过程",
        beamHint: "逐级显示保留下来的编码、含义、生成器写出它的概率与可到达的物品数。指向一张生成卡片可查看它的路径；点击即记录一次点击，列表随之变化。",
        shares: "两种百分比：卡片上是该物品在本次全部生成物品总分中的占比（经选择头、行为记忆与精排之后）；此处是生成器单独写出这些编码的概率。",
        ofScore: "列表得分占比", seenBefore: "看过", columnCodes: "编码与含义", columnNumbers: "生成概率 · 物品数",
        noCurrency: "价格", least: "最低相关度 %", relevance: "被选中的概率", readAs: "已理解为", unknownWords: "未知词", matches: "件物品匹配",
        noWord: "没有可展示的物品匹配此搜索：列表依据语义与历史生成。", noneRelevant: "没有相关度足够的物品。", why: "为什么出现？",
        wordIn: "见于", title: "标题", brand: "品牌", category: "类目", attributes: "属性", searches: "以往搜索", nowhere: "无", ofQuery: "占查询", dropped: "束搜索未保留",
        partsHead: "高于列表均值的得分（奈特）", refinerHead: "精排依据", codesHead: "逐级编码", wordsHead: "查询词",
        none: "暂无历史：模型给出大众首选。", nothing: "没有可生成的物品。", level: "第", legal: "个合法延伸",
        simulated: "模拟数据", key: "此服务需要 API 密钥", keyGo: "使用", took: "生成用时", more: "更多", stranger: "没有此用户的历史", examples: "试试",
        "catalogue": "目录中", "passes the filter": "通过过滤", "not seen or excluded": "可展示", "generated ": "已生成", "shown": "已展示" },
};
let language = navigator.language?.startsWith("zh") ? "zh" : "en";
let latest = 0;
const t = (name) => words[language][name] ?? name;
const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => { const e = document.createElement(tag); if (name) e.className = name; if (text !== undefined) e.textContent = text; return e; };

function translate() {
  document.documentElement.lang = language;
  for (const e of document.querySelectorAll("[data-t]")) e.textContent = t(e.dataset.t);
  $("language").textContent = language === "en" ? "中文" : "English";
}

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("rankloom-key");
  if (key) headers["x-api-key"] = key;
  const reply = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const json = await reply.json();
  if (reply.status === 401) $("unlock").hidden = false;
  if (!reply.ok) throw new Error([json.message, json.field && `${json.field}${json.value ? ` = ${json.value}` : ""}`, json.action].filter(Boolean).join("\n"));
  return json;
}

function tile(path) {
  const c = document.createElement("canvas"); c.className = "tile"; c.width = c.height = 34; c.setAttribute("aria-hidden", "true");
  let h = 7; for (const ch of path.join("/") || "?") h = (h * 31 + ch.codePointAt(0)) % 3600;
  const g = c.getContext("2d"); g.fillStyle = `hsl(${h / 10} 38% 62%)`; g.fillRect(0, 0, 34, 34);
  g.fillStyle = `hsl(${(h / 10 + 40) % 360} 45% 74%)`; g.beginPath(); g.arc(10 + (h % 14), 24, 12, 0, 7); g.fill();
  return c;
}

const price = (item) => item.price == null ? null : item.currency ? new Intl.NumberFormat(language, { style: "currency", currency: item.currency }).format(item.price) : `${t("noCurrency")} ${item.price.toFixed(2)}`;
const when = (stamp) => stamp ? new Intl.DateTimeFormat(language, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", timeZone: "UTC" }).format(new Date(stamp)) : "";

function card(item, side, tag) {
  const b = make(tag, "card"); if (tag === "button") b.type = "button";
  const middle = make("div"), title = make("strong", "", item.title); middle.append(title);
  if (item.seen) title.append(" ", make("mark", "", t("seenBefore")));
  const path = item.category.length > 1 ? item.category.slice(1) : item.category;
  middle.append(make("small", "", [path.join(" › "), price(item), item.duration_s ? `${Math.round(item.duration_s)} s` : null].filter(Boolean).join(" · ")));
  for (const reason of item.reasons ?? []) middle.append(make("small", "reason", reason));
  b.append(tile(item.category), middle, side);
  const li = make("li"); li.append(b); return [li, b];
}

// the first of many, and a button for the rest: the page scrolls, nothing inside it does
const narrow = matchMedia("(max-width:760px)");
function firstOf(rows, n, holder) {
  const most = narrow.matches ? Math.ceil(n / 2) : n;
  if (rows.length <= most) return rows;
  const more = make("button", "more", `${rows.length - most} ${t("more")}`); more.type = "button";
  const last = holder ? make(holder) : more;
  if (holder) last.append(more);
  more.addEventListener("click", () => last.replaceWith(...rows.slice(most)));
  return [...rows.slice(0, most), last];
}

function showHistory(person) {
  const rows = person.history.map((e) => {
    const side = make("div", "side"); side.append(make("div", "", e.event.replaceAll("_", " ")), make("div", "", when(e.timestamp)));
    return card(e, side, "div")[0];
  });
  $("history").replaceChildren(...(rows.length ? firstOf(rows, 14, "li") : [make("li", "hint", t("none"))]));
}

const percent = (logProbability) => { const p = 100 * Math.exp(logProbability); return `${p >= 10 ? p.toFixed(0) : p >= 1 ? p.toFixed(1) : p.toPrecision(2)}%`; };

// the prefixes of one semantic ID light up in the columns of the beam
function follow(sid) {
  for (const row of document.querySelectorAll(".prefix")) row.classList.toggle("on", sid !== null && sid.slice(0, row.codes.length).join() === row.codes.join());
}

// numbers as bars to the right for more and to the left for less
function bars(head, parts) {
  const box = make("div", "bars"), most = Math.max(...Object.values(parts).map(Math.abs), 1e-9); box.append(make("h4", "", head));
  for (const [name, value] of Object.entries(parts)) {
    const row = make("div", "bar"), track = make("i"), fill = make("b", value < 0 ? "less" : "");
    fill.style.width = `${50 * Math.abs(value) / most}%`; track.append(fill);
    row.append(make("span", "", name), track, make("span", "number", `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`)); box.append(row);
  }
  return box;
}

function explained(own) {
  const d = make("details", "why"), parts = make("div", "parts"); d.append(make("summary", "", t("why")));
  if (own.words.length) {
    const box = make("div"); box.append(make("h4", "", t("wordsHead")));
    for (const w of own.words) {
      const row = make("div", "word"); row.append(make("b", w.where.length ? "" : "absent", w.read_as ? `${w.word} → ${w.read_as}` : w.word));
      if (w.kind) row.append(make("span", "kind", w.kind));
      row.append(make("span", "", `${w.where.length ? `${t("wordIn")} ${w.where.map(t).join(", ")}` : t("nowhere")} · ${(100 * w.share).toFixed(0)}% ${t("ofQuery")}`)); box.append(row);
    }
    parts.append(box);
  }
  const codes = make("div"); codes.append(make("h4", "", t("codesHead")));
  for (const step of own.path) { const row = make("div", "word"); row.append(make("span", "sid", step.code), make("span", "", step.meaning || "–"), make("span", "number", step.log_prob === null ? t("dropped") : percent(step.log_prob))); codes.append(row); }
  parts.append(codes);
  if (Object.keys(own.parts).length > 1) parts.append(bars(t("partsHead"), own.parts));
  if (Object.keys(own.refiner).length) parts.append(bars(t("refinerHead"), own.refiner));
  d.append(parts); return d;
}

// how the words of a search were read, and what came of it
function showRead(trace) {
  const said = [];
  if (trace.corrections.length) said.push(`${t("readAs")} ${trace.corrections.map((c) => `${c.typed} → ${c.read_as}`).join(", ")}`);
  if (trace.unknown_words.length) said.push(`${t("unknownWords")}: ${trace.unknown_words.join(", ")}`);
  if (trace.matches) said.push(`${trace.matches >= 1000 ? "≥ " : ""}${trace.matches.toLocaleString()} ${t("matches")}`);
  $("read").textContent = said.join(" · "); $("read").hidden = !said.length;
  const told = trace.no_match && (trace.items.length || !trace.degraded_reason) ? t(trace.items.length ? "noWord" : "noneRelevant") : trace.degraded_reason ?? "";
  $("degraded").textContent = told; $("degraded").hidden = !told;
}

function showTrace(trace, user) {
  $("items").replaceChildren(...(trace.items.length ? trace.items.map((item) => {
    const side = make("div", "side"), chance = item.relevance; side.append(make("span", "sid", item.sid.join("-")));
    if (chance === null) side.append(make("div", "", percent(item.score)), make("div", "what", t("ofScore")));
    else {
      const meter = make("progress", "chance"); meter.max = 1; meter.value = Math.sqrt(chance); meter.setAttribute("aria-hidden", "true");
      side.append(make("div", "", chance ? percent(Math.log(chance)) : "0%"), meter, make("div", "what", t("relevance")));
    }
    const [li, b] = card(item, side, "button");
    if (item.explanation) li.append(explained(item.explanation));
    for (const on of ["mouseenter", "focus"]) b.addEventListener(on, () => follow(item.sid));
    for (const off of ["mouseleave", "blur"]) b.addEventListener(off, () => follow(null));
    b.addEventListener("click", () => act(async () => { await call("/v1/events", { events: [{ event_id: crypto.randomUUID?.() ?? `${Date.now()}`, user_id: user, item_id: item.item_id, event: "click" }] }); await refresh(); }));
    return li;
  }) : trace.no_match ? [] : [make("li", "hint", t("nothing"))]));
  showRead(trace);
  $("took").textContent = `${t("took")} ${trace.timing_ms.total.toFixed(0)} ms`;
  $("funnel").replaceChildren(...Object.entries(trace.funnel).map(([name, n]) => { const d = make("div"); d.append(make("b", "", n.toLocaleString()), make("span", "", name === "generated" ? t("generated ") : t(name))); return d; }));
  $("beam").replaceChildren(...trace.levels.map((level, n) => {
    const column = make("div", "level");
    column.append(make("h3", "", `${t("level")} ${n + 1} · ${trace.legal_continuations[n].toLocaleString()} ${t("legal")}`));
    const legend = make("p", "legend"); legend.append(make("span", "", t("columnCodes")), make("span", "", t("columnNumbers"))); column.append(legend);
    const rows = level.map((beam) => {
      const row = make("div", "prefix"); row.codes = beam.codes;
      const left = make("span"); left.append(make("span", "sid", beam.codes.join("-")), make("em", "", " " + beam.meaning));
      const bar = make("progress"); bar.max = 1; bar.value = Math.exp(beam.log_prob - level[0].log_prob);
      row.append(left, make("span", "", `${percent(beam.log_prob)} · ${beam.n_items}`), bar); return row;
    });
    column.append(...firstOf(rows, 14));
    return column;
  }));
}

function ask() { return { user: $("user").value.trim(), filter: $("filter").value.trim(), query: $("query").value.trim(), least: $("least").value.trim() }; }

async function refresh() {
  const own = ++latest, { user, filter, query, least } = ask();
  const kept = new URLSearchParams(Object.entries({ user, filter, query, least }).filter(([, value]) => value));
  history.replaceState(null, "", kept.size ? `?${kept}` : location.pathname);
  document.body.classList.add("busy");
  try {
    const body = { user_id: user || null, k: 12, explain: true, filter: filter || null, query: query || null };
    if (query && least) body.min_relevance = Number(least) / 100;
    // a wrong filter is no reason to hide what the person did
    const [person, trace] = await Promise.allSettled([call(`/v1/console/users/${encodeURIComponent(user || "-")}`), call("/v1/console/trace", body)]);
    // an answer that a newer question has overtaken is not shown
    if (own !== latest) return;
    if (person.status === "fulfilled") {
      showHistory(person.value);
      $("known").textContent = user && !person.value.history.length ? t("stranger") : "";
    }
    if (trace.status === "rejected") throw trace.reason;
    showTrace(trace.value, user || "visitor");
  } finally { if (own === latest) document.body.classList.remove("busy"); }
}

// every action ends in what it shows or in a message
async function act(what) {
  try { await what(); $("problem").hidden = true; } catch (error) {
    $("problem").textContent = error instanceof TypeError ? "The server does not answer." : error.message; $("problem").hidden = false;
    for (const id of ["items", "beam", "funnel"]) $(id).replaceChildren();
    $("degraded").hidden = $("read").hidden = true; $("took").textContent = "";
  }
}

let people = [];
async function start() {
  people = await call("/v1/console/users?limit=500");
  $("users").replaceChildren(...people.map((u) => { const o = make("option"); o.value = u; return o; }));
  const given = new URLSearchParams(location.search);
  for (const name of ["user", "filter", "query", "least"]) $(name).value = given.get(name) ?? $(name).value;
  if (!$("user").value && !given.size) $("user").value = people[0] ?? "";
  await refresh();
}

$("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; translate(); act(refresh); });
$("ask").addEventListener("submit", (event) => { event.preventDefault(); act(refresh); });
$("user").addEventListener("change", () => act(refresh));
$("another").addEventListener("click", () => { $("user").value = people[Math.floor(Math.random() * people.length)] ?? ""; act(refresh); });
for (const b of document.querySelectorAll("[data-fill]")) b.addEventListener("click", () => { $(b.dataset.fill).value = b.textContent; act(refresh); });
$("unlock").addEventListener("submit", (event) => { event.preventDefault(); sessionStorage.setItem("rankloom-key", $("key").value); $("unlock").hidden = true; act(start); });
translate();
act(start);
