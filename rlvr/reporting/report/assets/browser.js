// Unpacks the completions, filters them, and shows a page of them. Text only ever becomes text.
"use strict";
(() => {
  const PAGE = 20, HEAT_STEPS = 5, SCALE = { logprob: 5, entropy: 2.5 };
  const form = document.getElementById("filter");
  const root = document.documentElement;
  reloadWhileLive();
  if (!form) return;
  const byId = (id) => document.getElementById(id);
  const names = [...(form.elements.run?.options ?? [])].slice(1).map((option) => option.textContent);
  const rows = [];
  let found = [], page = 0;

  byId("examples").hidden = true;
  fromHash();
  unpack().then(() => update(false), () => {
    byId("examples").hidden = false;
    byId("count").textContent = "This browser cannot unpack the completions; these are examples.";
  });
  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 60); });
  form.addEventListener("submit", (event) => { event.preventDefault(); update(); });
  form.addEventListener("reset", () => setTimeout(update, 0));
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  addEventListener("hashchange", () => { if (fromHash()) update(false); });

  async function unpack() {
    for (const script of document.querySelectorAll("script.packed")) {
      const bytes = Uint8Array.from(atob(script.textContent), (each) => each.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      const columns = await new Response(stream).json();
      columns.step.forEach((_, index) => rows.push(row(columns, index)));
      script.remove();
    }
    rows.sort((a, b) => a.run - b.run || a.step - b.step || a.place - b.place);
    root.dataset.unpacked = rows.length;
  }

  function row(columns, index) {
    const made = { tokens: columns.tokens[index] };
    for (const name of ["run", "step", "place", "completion", "hint", "outcome", "reward", "advantage", "num_tokens", "truncated", "parts"]) {
      made[name] = columns[name][index];
    }
    made.prompt = columns.prompts[columns.prompt[index]];
    made.searched = `${made.prompt ?? ""}\n${made.hint ?? ""}\n${made.completion ?? ""}`.toLowerCase();
    return made;
  }

  function word(each) {
    return each.outcome === null ? "none" : each.outcome === 1 ? "right" : "wrong";
  }

  const ORDERS = {
    late: (a, b) => b.step - a.step,
    reward: (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity),
    unrewarded: (a, b) => (a.reward ?? Infinity) - (b.reward ?? Infinity),
    long: (a, b) => (b.num_tokens ?? 0) - (a.num_tokens ?? 0),
    short: (a, b) => (a.num_tokens ?? 0) - (b.num_tokens ?? 0),
  };

  function update(remember = true) {
    const started = performance.now();
    const asked = Object.fromEntries(new FormData(form));
    const text = asked.q.toLowerCase();
    const from = asked.from === "" ? -Infinity : Number(asked.from), to = asked.to === "" ? Infinity : Number(asked.to);
    found = rows.filter((each) =>
      each.step >= from && each.step <= to &&
      (!asked.run || each.run === Number(asked.run)) &&
      (!asked.outcome || word(each) === asked.outcome) &&
      (!asked.end || each.truncated === (asked.end === "truncated")) &&
      (!asked.hint || (each.hint !== null) === (asked.hint === "with")) &&
      (!asked.heat || each.tokens) &&
      (!text || each.searched.includes(text)));
    if (ORDERS[asked.order]) found.sort(ORDERS[asked.order]);
    page = 0;
    show();
    root.dataset.searchMs = (performance.now() - started).toFixed(1);
    if (remember) {
      const kept = Object.entries(asked).filter(([, value]) => value !== "");
      history.replaceState(null, "", "#completions" + kept.map(([key, value]) => `&${key}=${encodeURIComponent(value)}`).join(""));
    }
  }

  function fromHash() {
    const [name, ...parts] = location.hash.slice(1).split("&");
    if (name !== "completions" || !parts.length) return false;
    for (const part of parts) {
      const [key, value] = part.split("=");
      const field = form.elements.namedItem(key);
      if (field) field.value = decodeURIComponent(value ?? "");
    }
    byId("completions").scrollIntoView();
    return true;
  }

  function turn(by) {
    page += by;
    show();
    byId("count").scrollIntoView({ block: "center" });
  }

  function show() {
    const heat = form.elements.heat?.value ?? "";
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    byId("count").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} completions`;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page >= pages - 1;
    byId("heat-key").hidden = !heat;
    byId("heat-key").textContent = heat === "entropy"
      ? `Stronger colour: the policy was less sure of this token (entropy, strongest from ${SCALE.entropy} nats). Point at a token for its numbers.`
      : `Stronger colour: the token was less likely (log-probability, strongest from -${SCALE.logprob}). Point at a token for its numbers.`;
    byId("shown").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((each) => card(each, heat)));
  }

  function make(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  function card(each, heat) {
    const label = { right: "✓ right", wrong: "✗ wrong", none: "? no verdict" }[word(each)];
    const facts = [names[each.run], label, fact("reward", each.reward), fact("advantage", each.advantage),
      each.num_tokens === null ? null : `${each.num_tokens} tokens`, each.truncated ? "truncated" : null,
      ...Object.entries(each.parts).map(([name, value]) => fact(name, value))];
    const line = make("p", "facts", make("strong", "", `step ${each.step}, completion ${each.place + 1}`));
    for (const text of facts) if (text) line.append(make("span", "", text));
    const made = make("article", "completion", line, make("pre", "prompt", each.prompt ?? ""));
    if (each.hint !== null) made.append(make("div", "hint", make("p", "", "hint shown to the policy"), make("pre", "", each.hint)));
    made.append(heat && each.tokens ? heatMap(each.tokens, heat) : make("pre", "", each.completion ?? ""));
    return made;
  }

  function fact(name, value) {
    return typeof value === "number" ? `${name} ${Number(value.toPrecision(4))}` : null;
  }

  function heatMap([texts, logprobs, entropies], heat) {
    return make("pre", "", ...texts.map((text, index) => {
      const value = heat === "entropy" ? entropies[index] : -logprobs[index];
      const level = Math.max(0, Math.min(HEAT_STEPS, Math.round((HEAT_STEPS * value) / SCALE[heat])));
      const token = make("span", `token heat${level}`, text);
      token.title = `log-probability ${logprobs[index]}, entropy ${entropies[index]}`;
      return token;
    }));
  }

  function reloadWhileLive() {
    if (!("live" in root.dataset)) return;
    const opened = "opened " + location.pathname;
    try {
      for (const id of JSON.parse(sessionStorage.getItem(opened) ?? "[]")) {
        const each = document.getElementById(id);
        if (each) each.open = true;
      }
    } catch { /* without storage the details are closed again */ }
    setInterval(() => {
      const isBusy = document.hidden || document.activeElement?.closest("form") || String(getSelection());
      if (isBusy) return;
      const ids = [...document.querySelectorAll("details[open]")].map((each) => each.id);
      try { sessionStorage.setItem(opened, JSON.stringify(ids)); } catch { /* as above */ }
      location.reload();
    }, 5000);
  }
})();
