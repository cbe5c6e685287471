// The page: one person, what the model generates for them, and how the beam got there.
const words = {
  en: { tagline: "One generative model over", items: "items", people: "people", person: "Person", filter: "Filter", search: "Search", go: "Generate",
        history: "What they did", generated: "What the model generates", beam: "How the beam got there",
        beamHint: "Level by level: the codes that survive, what they mean, and their probability. Click a generated card to take it: the list reacts.",
        none: "nothing yet", level: "Level", legal: "legal continuations" },
  zh: { tagline: "一个生成模型，", items: "件物品", people: "位用户", person: "用户", filter: "过滤条件", search: "搜索", go: "生成",
        history: "历史行为", generated: "模型生成的列表", beam: "束搜索过程",
        beamHint: "逐级显示保留下来的编码、含义与概率。点击一张生成卡片即记录一次点击，列表随之变化。",
        none: "暂无", level: "第", legal: "个合法延伸" },
};
let language = navigator.language?.startsWith("zh") ? "zh" : "en";
const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => { const e = document.createElement(tag); if (name) e.className = name; if (text !== undefined) e.textContent = text; return e; };

function translate() {
  document.documentElement.lang = language;
  for (const e of document.querySelectorAll("[data-t]")) e.textContent = words[language][e.dataset.t];
  $("language").textContent = language === "en" ? "中文" : "English";
}

async function call(path, body) {
  const reply = await fetch(path, body && { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const json = await reply.json();
  if (!reply.ok) throw new Error([json.message, json.action].filter(Boolean).join("\n"));
  return json;
}

function tile(path) {
  const c = document.createElement("canvas"); c.className = "tile"; c.width = c.height = 34;
  let h = 7; for (const ch of path.join("/") || "?") h = (h * 31 + ch.codePointAt(0)) % 3600;
  const g = c.getContext("2d"); g.fillStyle = `hsl(${h / 10} 38% 62%)`; g.fillRect(0, 0, 34, 34);
  g.fillStyle = `hsl(${(h / 10 + 40) % 360} 45% 74%)`; g.beginPath(); g.arc(10 + (h % 14), 24, 12, 0, 7); g.fill();
  return c;
}

function card(item, side) {
  const b = make("button", "card"); b.type = "button";
  const middle = make("div"); middle.append(make("strong", "", item.title));
  const facts = [item.category.slice(1).join(" › "), item.price != null ? `$${item.price.toFixed(2)}` : null, item.duration_s ? `${Math.round(item.duration_s)} s` : null];
  middle.append(make("small", "", facts.filter(Boolean).join(" · ")));
  for (const reason of item.reasons ?? []) { middle.append(make("br")); middle.append(make("small", "", reason)); }
  b.append(tile(item.category), middle, side);
  const li = make("li"); li.append(b); return [li, b];
}

function showHistory(events) {
  $("history").replaceChildren(...(events.length ? events.map((e) => {
    const side = make("div", "side"); side.append(make("div", "", e.event), make("div", "", e.timestamp ? e.timestamp.slice(5, 16).replace("T", " ") : ""));
    return card(e, side)[0];
  }) : [make("li", "hint", words[language].none)]));
}

function showTrace(trace, user) {
  $("items").replaceChildren(...trace.items.map((item) => {
    const side = make("div", "side"); side.append(make("span", "sid", item.sid.join("-")), make("div", "", item.score.toFixed(2)));
    const [li, b] = card(item, side);
    b.addEventListener("click", async () => { await call("/v1/events", { events: [{ user_id: user, item_id: item.item_id, event: "click" }] }); refresh(); });
    return li;
  }));
  $("funnel").replaceChildren(...Object.entries(trace.funnel).map(([name, n]) => { const d = make("div"); d.append(make("b", "", n.toLocaleString()), make("span", "", name)); return d; }));
  $("beam").replaceChildren(...trace.levels.map((level, n) => {
    const column = make("div", "level");
    column.append(make("h3", "", `${words[language].level} ${n + 1} · ${trace.legal_continuations[n].toLocaleString()} ${words[language].legal}`));
    for (const beam of level.slice(0, 14)) {
      const row = make("div", "prefix"); const left = make("span"); left.append(make("span", "sid", beam.codes.join("-")), make("em", "", " " + beam.meaning));
      const bar = make("progress"); bar.max = 1; bar.value = Math.exp(beam.log_prob - level[0].log_prob);
      row.append(left, make("span", "", `${(100 * Math.exp(beam.log_prob)).toFixed(2)}% · ${beam.n_items}`), bar); column.append(row);
    }
    return column;
  }));
}

async function refresh() {
  const user = $("user").value.trim();
  const ask = { user_id: user || null, k: 12, explain: true, filter: $("filter").value.trim() || null, query: $("query").value.trim() || null };
  try {
    const [person, trace] = await Promise.all([call(`/v1/console/users/${encodeURIComponent(user || "-")}`), call("/v1/console/trace", ask)]);
    $("problem").hidden = true; showHistory(person.history); showTrace(trace, user || "visitor");
  } catch (error) { $("problem").textContent = error.message; $("problem").hidden = false; }
}

$("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; translate(); refresh(); });
$("ask").addEventListener("submit", (event) => { event.preventDefault(); refresh(); });
$("user").addEventListener("change", refresh);
translate();
const users = await call("/v1/console/users?limit=500");
$("users").replaceChildren(...users.map((u) => { const o = make("option"); o.value = u; return o; }));
$("user").value = users[0] ?? "";
refresh();
