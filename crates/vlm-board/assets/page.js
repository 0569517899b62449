"use strict";
// Draws the page from its data: embedded in a report, fetched from the board otherwise.

const CHINESE = {
  "Loss": "损失", "nats per supervised token": "每个监督词元的 nat", "Image gain": "图像增益",
  "higher loss with the images of other rows": "换用其他行图像时损失的增加", "Exact answers": "完全正确的回答",
  "share of the generated captions": "占生成描述的比例", "Learning rate": "学习率", "Gradient norm": "梯度范数",
  "before clipping": "裁剪之前", "Throughput": "吞吐量", "rows per second": "行/秒", "Tokens": "词元",
  "tokens per second": "词元/秒", "MFU": "MFU", "share of the device's peak rate": "占设备峰值算力的比例",
  "Step time": "每步用时", "milliseconds": "毫秒", "Data wait": "等待数据", "milliseconds per step": "毫秒/步",
  "Peak memory": "峰值内存", "peak memory": "峰值内存", "Rejected rows": "被拒绝的行", "distinct rows so far": "至今不同的行数",
  "Skipped updates": "跳过的更新", "so far": "至今", "Load-balancing loss": "负载均衡损失", "Token F1": "词元 F1",
  "mean over the generated captions": "生成描述的平均值", "evaluation": "评估", "step": "步数", "rows": "行数",
  "training time": "训练时间", "smoothing": "平滑", "log scale": "对数刻度", "x axis": "横轴",
  "running": "运行中", "finished": "已完成", "interrupted": "已中断", "runs": "个运行", "waiting for the first line": "等待第一行",
  "removed": "已删除", "no new line for": "无新日志行已", "left": "剩余", "loss": "损失", "epoch": "轮",
  "exact, one object": "一个物体完全正确", "two objects": "两个物体", "Held-out rows": "留出的行",
  "Answers to evaluation rows": "对评估行的回答", "expected": "期望", "reason": "原因", "for example": "例如",
  "detail": "详情", "Differences between the configurations": "配置差异", "Summary": "总结",
  "Configuration": "配置", "setting": "设置", "the configurations are equal": "配置相同",
  "The board does not answer; the page tries again.": "看板没有响应，页面会重试。",
  "No run is selected.": "没有选中任何运行。", "The log has no line yet.": "日志还没有任何行。",
};
// Title, what its unit is, the curves as [table, field], and how they are drawn.
const CHARTS = [
  ["Loss", "nats per supervised token", [["steps", "loss"], ["evaluations", "eval_loss"]], { noisy: true, log: true }],
  ["Image gain", "higher loss with the images of other rows", [["evaluations", "eval_image_gain"]], {}],
  ["Exact answers", "share of the generated captions", [["evaluations", "eval_exact"]], { share: true }],
  ["Token F1", "mean over the generated captions", [["evaluations", "eval_token_f1"]], { share: true }],
  ["Learning rate", "", [["steps", "lr"]], {}],
  ["Gradient norm", "before clipping", [["steps", "grad_norm"]], { noisy: true, log: true }],
  ["Throughput", "rows per second", [["steps", "samples_per_sec"]], { noisy: true }],
  ["Tokens", "tokens per second", [["steps", "tokens_per_sec"]], { noisy: true }],
  ["MFU", "share of the device's peak rate", [["steps", "mfu"]], { noisy: true }],
  ["Step time", "milliseconds", [["steps", "step_ms"]], { noisy: true }],
  ["Data wait", "milliseconds per step", [["steps", "data_wait_ms"]], { noisy: true }],
  ["Peak memory", "GiB", [["steps", "peak_memory_bytes"]], { scale: 2 ** -30 }],
  ["Load-balancing loss", "", [["steps", "aux_loss"]], { noisy: true }],
  ["Rejected rows", "distinct rows so far", [["steps", "rejected_rows"]], { skipZero: true }],
  ["Skipped updates", "so far", [["steps", "skipped_updates"]], { skipZero: true }],
];
// For a light and for a dark page.
const COLOURS = [
  ["#2f6fb3", "#d9722b", "#2c9a6b", "#b3478f", "#8a6fd1", "#a8892a", "#2aa5b8", "#c8504f"],
  ["#6fb1f2", "#f0a060", "#5cc78f", "#e08cc4", "#b39df0", "#d8bd5a", "#63d3e3", "#f08a88"],
];
const POLL_MS = 2000;
const darkness = matchMedia("(prefers-color-scheme: dark)");

const embedded = JSON.parse(document.getElementById("data").textContent);
const state = { data: null, hidden: new Set(), x: "step", smoothing: 4, log: false, isLost: false,
                isChinese: navigator.language.startsWith("zh") };
const t = (text) => (state.isChinese && CHINESE[text]) || text;

// An element with its properties and children; text is never read as HTML.
function el(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

function short(value) {
  if (value == null || !isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(4) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
  if (size >= 1e5) return +(value / 1e3).toPrecision(4) + "k";
  if (size > 0 && size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(+value.toPrecision(4));
}

function duration(secs) {
  if (secs >= 7200) return (secs / 3600).toFixed(1) + " h";
  return secs >= 120 ? (secs / 60).toFixed(1) + " min" : secs.toFixed(0) + " s";
}

// The curve without its noise and without lag: at each point the value of a line that is fitted to
// the neighbours, which count less the farther they are (local linear regression with a Gaussian
// kernel; Cleveland 1979). At the ends, too, it follows the trend.
function smoothed(ys, width) {
  if (width === 0) return ys;
  const reach = Math.ceil(3 * width);
  const weights = Array.from({ length: reach + 1 }, (_, d) => Math.exp(-0.5 * (d / width) ** 2));
  return ys.map((_, at) => {
    let [s0, s1, s2, y0, y1] = [0, 0, 0, 0, 0];
    for (let i = Math.max(0, at - reach); i <= Math.min(ys.length - 1, at + reach); i++) {
      if (ys[i] == null) continue;
      const [w, d] = [weights[Math.abs(i - at)], i - at];
      s0 += w; s1 += w * d; s2 += w * d * d; y0 += w * ys[i]; y1 += w * d * ys[i];
    }
    const determinant = s0 * s2 - s1 * s1;
    if (s0 === 0) return null;
    return determinant > 1e-9 * s0 * s0 ? (s2 * y0 - s1 * y1) / determinant : y0 / s0;
  });
}

// The unit of the time axis for the longest of the runs.
function timeUnit(runs) {
  const longest = Math.max(0, ...runs.map((run) => run.steps.secs.at(-1) ?? 0));
  return longest >= 7200 ? [3600, "h"] : longest >= 300 ? [60, "min"] : [1, "s"];
}

const shownRuns = () => state.data.runs.filter((run) => !state.hidden.has(run.name));

// The tables and series of a chart; null when no run has a value for it.
function chartContent([title, , curves, options], runs) {
  const tables = [], series = [], bands = [];
  const [divisor] = timeUnit(runs);
  for (const run of runs) {
    for (const [table, field] of curves) {
      const curve = run[table][field];
      if (!curve || (options.skipZero && curve.mean.every((value) => !value))) continue;
      const scaled = (ys) => ys.map((y) => (y == null ? null : y * (options.scale ?? 1)));
      const x = run[table][state.x].map((value) => (state.x === "secs" ? value / divisor : value));
      const mean = scaled(curve.mean);
      const columns = [x];
      const add = (ys, more) => {
        columns.push(ys);
        series.push({ stroke: run.colour, spanGaps: true, points: { show: false },
                      value: (_, value) => short(value), ...more });
      };
      if (curve.high) {
        add(scaled(curve.high), { class: "part", stroke: "transparent", label: "high" });
        add(scaled(curve.low), { class: "part", stroke: "transparent", label: "low" });
        bands.push({ series: [series.length - 1, series.length], fill: run.colour + "30" });
      }
      const isSmoothed = options.noisy && table === "steps" && mean.length >= 20 && state.smoothing > 0;
      if (isSmoothed) {
        add(mean, { class: "part", stroke: run.colour + "60", width: 1, label: "mean" });
      }
      const isEvaluation = table === "evaluations";
      const name = runs.length > 1 ? run.name : t(title);
      add(isSmoothed ? smoothed(mean, (mean.length * state.smoothing) / 200) : mean, {
        label: isEvaluation && curves.length > 1 ? (runs.length > 1 ? run.name + " " : "") + t("evaluation") : name,
        width: 2,
        dash: isEvaluation && curves.length > 1 ? [6, 4] : undefined,
        points: { show: isEvaluation || mean.length < 20, size: 6 },
      });
      tables.push(columns);
    }
  }
  return series.length ? { data: tables.length > 1 ? uPlot.join(tables) : tables[0], series, bands } : null;
}

function axisTitle(runs) {
  return state.x === "secs" ? `${t("training time")} (${timeUnit(runs)[1]})` : t(state.x);
}

const charts = new Map();

// Replaces the content of a part of the page. The focus stays on the element with the same key.
function refill(part, ...children) {
  const key = part.contains(document.activeElement) && document.activeElement.closest("[data-key]")?.dataset.key;
  part.replaceChildren(...children);
  const again = key && [...part.querySelectorAll("[data-key]")].find((element) => element.dataset.key === key);
  if (again) (again.querySelector("summary") ?? again).focus({ preventScroll: true });
}

// An element by whose key the focus is kept.
function keyed(key, element) {
  element.dataset.key = key;
  return element;
}

// Draws the charts; one that is there already gets new values and keeps its zoom.
function drawCharts(grid, isNew) {
  const runs = shownRuns();
  if (isNew) {
    charts.forEach((chart) => chart.plot.destroy());
    charts.clear();
    grid.replaceChildren();
  }
  const style = getComputedStyle(document.documentElement);
  const [soft, rule] = ["--soft", "--rule"].map((name) => style.getPropertyValue(name));
  let last = null;
  for (const chart of CHARTS) {
    const [title, unit, , options] = chart;
    const content = chartContent(chart, runs);
    const known = charts.get(title);
    const shape = content && content.series.map((series) => series.label + series.class).join();
    if (known && shape === known.shape) {
      known.plot.setData(content.data, !known.zoom.isOn);
      last = known.figure;
      continue;
    }
    if (known) {
      known.plot.destroy();
      known.figure.remove();
      charts.delete(title);
    }
    if (!content) continue;
    const figure = el("figure", {}, el("figcaption", {}, t(title), unit && el("small", {}, t(unit))));
    last ? last.after(figure) : grid.prepend(figure);
    last = figure;
    const axis = { stroke: soft, grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1, size: 4 },
                   font: "11px system-ui, sans-serif", labelFont: "11px system-ui, sans-serif" };
    const values = (_, splits) => splits.map((split) => (split == null ? "" : short(split)));
    const size = () => ({ width: figure.clientWidth - 2 * parseFloat(getComputedStyle(figure).paddingLeft),
                          height: 230 });
    const isLog = state.log && options.log;
    const zoom = { isOn: false };
    const plot = new uPlot({
      ...size(), bands: content.bands, padding: [10, 14, 0, 0],
      cursor: { sync: { key: "x", setSeries: false }, points: { size: 6 } },
      hooks: { setSelect: [(plot) => (zoom.isOn = plot.select.width > 0)] },
      scales: { x: { time: false }, y: { distr: isLog ? 3 : 1, range: options.share ? [0, 1.03] : undefined } },
      axes: [{ ...axis, values, size: 30, label: axisTitle(runs), labelSize: 16, labelGap: 0 },
             { ...axis, values, size: 58 }],
      series: [{ label: axisTitle(runs), value: (_, value) => short(value) }, ...content.series],
    }, content.data, figure);
    plot.over.addEventListener("dblclick", () => (zoom.isOn = false));
    charts.set(title, { plot, figure, shape, size, zoom });
  }
}

function facts(run) {
  const { last } = run.steps;
  const { step } = last;
  const total = run.config?.last_step;
  const speed = last.secs / Math.max(step, 1);
  const share = (value) => (value == null ? null : (100 * value).toFixed(1) + "%");
  const { summary } = run;
  const found = [
    [t("step"), total ? `${short(step)}/${short(total)}` : short(step)],
    [t("loss"), last.loss?.toFixed(4)],
    [t("rows per second"), last.samples_per_sec && short(last.samples_per_sec)],
    ["MFU", share(last.mfu)],
    [t("exact, one object"), share(summary?.heldout_exact_after)],
    [t("two objects"), share(summary?.heldout_exact_two_after)],
    [t("left"), total > step && statusOf(run)[0] === t("running") && duration((total - step) * speed)],
    [t("training time"), duration(last.secs)],
    [t("peak memory"), last.peak_memory_bytes && short(last.peak_memory_bytes / 2 ** 30) + " GiB"],
    [t("rows"), last.rows && short(last.rows)],
  ];
  return found.filter(([, value]) => value).map(([label, value]) => el("span", {}, `${label} `, el("b", {}, value)));
}

// What the run does now, and the class of its colour.
function statusOf(run) {
  if (run.removed) return [t("removed"), "wait"];
  if (run.ended) return [t(run.ended), run.ended === "finished" ? "good" : "wait"];
  if (!run.steps.step.length) return [t("waiting for the first line"), "wait"];
  const age = Date.now() / 1000 - run.written_at;
  const stepSecs = run.steps.last.secs / Math.max(run.steps.last.step, 1);
  const untilNext = Math.max(run.secs_between_lines, stepSecs * (run.config?.run?.run?.log_interval ?? 0));
  return age < Math.max(60, 5 * untilNext)
    ? [t("running"), "good"] : [`${t("no new line for")} ${duration(age)}`, "wait"];
}

function drawHead(head) {
  const { runs } = state.data;
  const isSingle = runs.length === 1;
  const title = isSingle ? runs[0].name : `${runs.length} ${t("runs")}`;
  document.title = embedded ? document.title : `${title}${isSingle && runs[0].what ? " · " + runs[0].what : ""}`;
  const toggle = (run) => keyed(`run ${run.name}`, el("input", { type: "checkbox", checked: !state.hidden.has(run.name),
    onchange: (event) => {
      event.target.checked ? state.hidden.delete(run.name) : state.hidden.add(run.name);
      draw(true);
    } }));
  const lines = runs.map((run) => {
    const swatch = el("i", { className: "swatch" });
    swatch.style.background = run.colour;
    const [status, tone] = statusOf(run);
    return el("div", { className: isSingle ? "run" : "run many" },
      isSingle ? null : el("label", { title: run.what ?? "" }, toggle(run), swatch, run.name),
      el("span", { className: tone }, status), facts(run));
  });
  const problems = runs.flatMap((run) => run.problems.map((problem) => (isSingle ? problem : `${run.name}: ${problem}`)));
  if (state.isLost) problems.unshift(t("The board does not answer; the page tries again."));
  refill(head,
    el("h1", {}, title, isSingle && runs[0].what ? el("small", {}, " · " + runs[0].what) : null),
    ...lines, ...problems.map((problem) => el("p", { className: "warning" }, problem)));
}

// Numbers are not broken into lines; names and paths are, where the window is narrow.
function table(head, rows) {
  const isNumber = (cell) => /^[-+]?[\d.,]+%?$/.test(String(cell));
  const line = (tag) => (cells) => el("tr", {},
    cells.map((cell) => el(tag, isNumber(cell) ? { className: "number" } : {}, cell ?? "")));
  return el("div", { className: "scroll" },
    el("table", {}, head.length ? line("th")(head) : null, rows.map(line("td"))));
}

const tone = (text, expected) => (text === expected ? "good" : "wait");

function answers(sample) {
  const step = ({ first_step, last_step }) => (first_step === last_step ? first_step : `${first_step}–${last_step}`);
  const items = [...sample.answers].reverse().map((answer) => el("li", {},
    el("span", {}, String(step(answer))), el("b", { className: tone(answer.text, sample.expected) }, answer.text)));
  return el("ol", { className: "answers" }, items);
}

function card(row, ...more) {
  return el("div", { className: "card" },
    row.image ? el("img", { src: row.image, alt: row.expected }) : null,
    el("small", {}, row.question.replaceAll("<image>", "").trim()), ...more);
}

// The values of a tree by their dotted paths.
function leaves(tree, path = "", found = {}) {
  for (const [key, value] of Object.entries(tree ?? {})) {
    const name = path ? `${path}.${key}` : key;
    if (value !== null && typeof value === "object" && !Array.isArray(value)) leaves(value, name, found);
    else found[name] = typeof value === "string" ? value : value === null ? "–" : JSON.stringify(value);
  }
  return found;
}

// Opened parts stay open when the page is drawn again.
function folded(key, title, ...content) {
  const found = document.querySelector(`details[data-key="${key}"]`);
  return keyed(key, el("details", { open: found?.open ?? false }, el("summary", {}, title), ...content));
}

function drawSections(sections) {
  const runs = shownRuns();
  const parts = [];
  const named = (run) => (runs.length > 1 ? el("h3", {}, run.name) : null);
  const section = (title, has, content) => {
    const having = runs.filter(has);
    if (having.length) parts.push(el("h2", {}, t(title)), ...having.flatMap((run) => [named(run), content(run)].flat()));
  };
  section("Held-out rows", (run) => run.held_out, ({ held_out }) => [
    table(held_out.scores.head, held_out.scores.rows),
    el("div", { className: "cards small" }, held_out.examples.map((row) => card(row,
      el("b", { className: tone(row.generated, row.expected) }, row.generated),
      row.generated === row.expected ? null : el("small", {}, `${t("expected")}: ${row.expected}`)))),
  ]);
  section("Answers to evaluation rows", (run) => run.samples.length, (run) => el("div", { className: "cards" },
    run.samples.map((sample) => card(sample, el("div", {}, `${t("expected")}: ${sample.expected}`), answers(sample),
      el("small", {}, sample.location)))));
  section("Rejected rows", (run) => run.rejected.length, (run) => table(
    [t("reason"), t("rows"), t("for example"), t("detail")],
    run.rejected.map(({ reason, rows, location, detail }) => [reason, String(rows), location, detail])));
  const settings = runs.map((run) => leaves(run.config));
  if (runs.length > 1) {
    const names = [...new Set(settings.flatMap(Object.keys))];
    const rows = names.map((name) => [name, ...settings.map((values) => values[name])])
      .filter(([name, ...values]) => name !== "run.run.out_dir" && values.some((value) => value !== values[0]));
    parts.push(el("h2", {}, t("Differences between the configurations")), rows.length
      ? table([t("setting"), ...runs.map((run) => run.name)], rows)
      : el("p", { className: "note" }, t("the configurations are equal")));
  }
  runs.forEach((run, index) => {
    const name = runs.length > 1 ? `: ${run.name}` : "";
    if (run.summary) parts.push(folded(`s${index}`, t("Summary") + name, table([], Object.entries(leaves(run.summary)))));
    if (run.config) parts.push(folded(`c${index}`, t("Configuration") + name, table([], Object.entries(settings[index]))));
  });
  // Lists that were scrolled stay where they are.
  const scrolled = [...sections.querySelectorAll(".answers")].map((list) => list.scrollTop);
  refill(sections, ...parts.filter(Boolean));
  sections.querySelectorAll(".answers").forEach((list, index) => (list.scrollTop = scrolled[index] ?? 0));
}

const parts = { head: el("header"), controls: el("div", { className: "controls" }),
                grid: el("div", { className: "charts" }), note: el("p", { className: "note" }), sections: el("div") };

function drawControls() {
  const option = (value, label) => el("option", { value, selected: state.x === value }, t(label));
  const set = (name, get) => (event) => { state[name] = get(event.target); draw(true); };
  refill(parts.controls,
    el("label", {}, t("x axis"), el("select", { onchange: set("x", (input) => input.value) },
      option("step", "step"), option("rows", "rows"), option("secs", "training time"))),
    el("label", {}, t("smoothing"), el("input", { type: "range", min: 0, max: 20, value: state.smoothing,
      oninput: set("smoothing", (input) => +input.value) })),
    el("label", {}, el("input", { type: "checkbox", checked: state.log, onchange: set("log", (input) => input.checked) }),
      t("log scale")),
    keyed("language", el("button", { onclick: () => { state.isChinese = !state.isChinese; drawControls(); draw(true); } },
      state.isChinese ? "English" : "中文")));
}

function draw(isNew) {
  const colours = COLOURS[+darkness.matches];
  state.data.runs.forEach((run, index) => (run.colour = colours[index % colours.length]));
  drawHead(parts.head);
  drawCharts(parts.grid, isNew);
  parts.note.textContent = !shownRuns().length ? t("No run is selected.")
    : charts.size ? "" : t("The log has no line yet.");
  drawSections(parts.sections);
}

function start(data) {
  state.data = data;
  document.getElementById("page").append(...Object.values(parts));
  drawControls();
  draw(true);
  addEventListener("resize", () => charts.forEach((chart) => chart.plot.setSize(chart.size())));
  darkness.addEventListener("change", () => draw(true));
}

async function poll() {
  try {
    const response = await fetch(state.data ? `data?version=${state.data.version}` : "data", { cache: "no-store" });
    if (response.status === 200) {
      const data = await response.json();
      const isFirst = !state.data;
      state.isLost = false;
      if (isFirst) start(data);
      else { state.data = data; draw(false); }
    } else if (state.data) {
      state.isLost = !response.ok;
      drawHead(parts.head);
    }
  } catch {
    state.isLost = true;
    if (state.data) drawHead(parts.head);
  }
  setTimeout(poll, POLL_MS);
}

if (embedded) start(embedded);
else poll();
