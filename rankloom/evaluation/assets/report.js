// Draws every chart of the report. Options are data; what data cannot say (whiskers, the page's colours) is here.
const { options, colours } = JSON.parse(document.getElementById("report-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const style = getComputedStyle(document.documentElement);
const ink = style.getPropertyValue("--ink").trim(), soft = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();

// an interval over the bar `side` of `sides` that stand in one category
const whisker = ([side, sides]) => (_, api) => {
  const width = Math.min(46, api.size([1, 0])[0] * 0.8 / sides);
  const shift = (side - (sides - 1) / 2) * (width + Math.min(width * 0.3, api.size([1, 0])[0] * 0.06));
  const [x, low] = api.coord([api.value(0), api.value(1)]), high = api.coord([api.value(0), api.value(2)])[1];
  const bar = (x1, y1, x2, y2) => ({ type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: ink, lineWidth: 1.2 } });
  return { type: "group", children: [bar(x + shift, low, x + shift, high), bar(x + shift - 4, low, x + shift + 4, low), bar(x + shift - 4, high, x + shift + 4, high)] };
};

// the most of a label that its box holds: "12  Toys" in one line or two, else "12", else nothing; the tooltip has it all
const pen = document.createElement("canvas").getContext("2d"); pen.font = "12px sans-serif";
const wide = (text) => pen.measureText(text).width + 16;
const fitting = (series) => ({ name, dataIndex }) => {
  const { width, height } = series().getData().getItemLayout(dataIndex) ?? { width: 0, height: 0 };
  const [code, ...rest] = name.split(/\s+/), meaning = rest.join(" ");
  if (height < 16) return "";
  if (wide(name) <= width) return name;
  if (height >= 36 && wide(meaning) <= width) return `${code}\n${meaning}`;
  return wide(code) <= width ? code : "";
};

const charts = options.map((option, number) => {
  for (const series of option.series) {
    if (series.type === "treemap") series.label.formatter = fitting(() => chart.getModel().getSeriesByIndex(0));
    if (!series.whisker) continue;
    series.renderItem = whisker(series.whisker);
    series.encode = { x: 0, y: [1, 2] };
    series.itemStyle = { color: ink };
    series.tooltip = { show: false };
    series.silent = true;
  }
  for (const axis of [option.xAxis, option.yAxis]) {
    if (!axis) continue;
    axis.axisLabel = { color: soft, ...axis.axisLabel };
    axis.nameTextStyle = { color: soft };
    axis.splitLine = { show: axis === option.yAxis, lineStyle: { color: line } };
  }
  if (option.legend) {
    option.legend.textStyle = { color: ink };
    option.legend.data = option.series.filter((series) => series.type !== "custom").map((series) => series.name);
  }
  const chart = echarts.init(document.getElementById("c" + number), dark ? "dark" : null, { renderer: "svg" });
  chart.setOption({
    backgroundColor: "transparent", color: colours, animation: false,
    tooltip: { trigger: option.xAxis ? "axis" : "item", confine: true },
    ...option,
    grid: { left: 62, right: 18, bottom: 48, ...option.grid },
  });
  return chart;
});
addEventListener("resize", () => charts.forEach((chart) => chart.resize()));
