"use strict";
(() => {
  const island = document.getElementById("data");
  if (!island) return;
  const { key, classes, issues } = JSON.parse(island.textContent);
  const byId = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll("#cards button")];
  const decisions = issues.map(() => null); // of each image: [decision, label], or null
  const rowOf = new Map(issues.map(([id], index) => [id, index]));
  let undone = []; // what each decision replaced: [index, what was there before]
  let current = 0;
  const DECISIONS = ["keep", "flip", "drop", "unsure"];

  function store() {
    const kept = decisions.flatMap((each, index) => (each ? [[issues[index][0], ...each]] : []));
    try {
      localStorage.setItem(key, JSON.stringify({ current, kept }));
    } catch {
      say("This browser keeps no decisions: save them before you close the page.");
    }
  }

  function restore() {
    try {
      const stored = JSON.parse(localStorage.getItem(key) || "{}");
      for (const [id, decision, label] of stored.kept || []) {
        if (rowOf.has(id) && valid(rowOf.get(id), decision, label)) decisions[rowOf.get(id)] = [decision, label];
      }
      if (Number.isInteger(stored.current)) current = Math.min(Math.max(stored.current, 0), issues.length - 1);
    } catch {
      // what another program has stored under this key is not used
    }
  }

  function valid(index, decision, label) {
    const given = issues[index][1];
    if (decision === "flip") return label !== given && classes.includes(label);
    return DECISIONS.includes(decision) && (label === "" || label === given);
  }

  function say(text) {
    byId("message").textContent = text;
  }

  function visible(text) {
    return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
  }

  function show(index) {
    cards[current].removeAttribute("aria-current");
    current = index;
    const [id, given, suggested] = issues[index];
    cards[index].setAttribute("aria-current", "true");
    byId("picture").src = cards[index].querySelector("img").src;
    byId("picture").alt = "Image " + visible(id);
    byId("position").textContent = `${index + 1} of ${issues.length}`;
    byId("name").textContent = visible(id);
    byId("given").textContent = visible(given);
    byId("suggested").textContent = visible(suggested);
    byId("probability").textContent = cards[index].dataset.p;
    const decision = decisions[index];
    byId("decision").textContent = decision ? "decided: " + sentence(decision) : "not decided yet";
    if (byId("choice")) byId("choice").value = classes.indexOf(decision && decision[0] === "flip" ? decision[1] : given);
    reveal(cards[index]);
  }

  function reveal(card) {
    // scrolls the list alone, so that the image under review stays where it is
    const list = byId("cards");
    const top = card.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + card.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = top + card.offsetHeight - list.clientHeight;
    }
  }

  function sentence([decision, label]) {
    return decision === "flip" ? "flip to " + visible(label) : decision;
  }

  function mark(index) {
    const decision = decisions[index];
    cards[index].querySelector(".mark").textContent = decision ? sentence(decision) : "";
    if (decision) cards[index].dataset.decision = decision[0];
    else delete cards[index].dataset.decision;
  }

  function count() {
    const done = decisions.filter(Boolean).length;
    byId("progress").value = done;
    byId("count").textContent = `${done} of ${issues.length} reviewed`;
  }

  function decide(decision, label) {
    undone.push([current, decisions[current]]);
    decisions[current] = [decision, label];
    mark(current);
    show(Math.min(current + 1, issues.length - 1));
    count();
    store();
    say("");
  }

  function undo() {
    const last = undone.pop();
    if (!last) return say("There is nothing to undo.");
    decisions[last[0]] = last[1];
    mark(last[0]);
    show(last[0]);
    count();
    store();
  }

  function flipTo(name) {
    if (name === undefined) return;
    if (name === issues[current][1]) decide("keep", name);
    else decide("flip", name);
  }

  const quoted = (text) => '"' + text.replaceAll('"', '""') + '"';

  function save() {
    const lines = ["id,given,decision,label"];
    decisions.forEach((each, index) => {
      if (each) lines.push([issues[index][0], issues[index][1], ...each].map(quoted).join(","));
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = "review.csv";
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    say(`Saved ${lines.length - 1} decisions to review.csv. Apply them by: thera clean RUN --apply review.csv`);
  }

  function parsed(text) {
    // RFC 4180: fields in quotes may hold commas, quotes and line ends
    const rows = [[]];
    const field = /("(?:[^"]|"")*"|[^",\r\n]*)(,|\r\n|\n|\r|$)/gy;
    text = text.replace(/^\ufeff/, "");
    while (field.lastIndex < text.length) {
      const match = field.exec(text);
      if (!match) return null;
      const value = match[1];
      rows.at(-1).push(value.startsWith('"') ? value.slice(1, -1).replaceAll('""', '"') : value);
      if (match[2] !== ",") rows.push([]);
    }
    return rows.filter((row) => row.length);
  }

  async function load(file) {
    const rows = parsed(await file.text());
    if (!rows || String(rows[0]) !== "id,given,decision,label") {
      return say("This file is no saved review: its first line must be id,given,decision,label.");
    }
    let taken = 0;
    for (const [id, given, decision, label = ""] of rows.slice(1)) {
      const index = rowOf.get(id);
      if (index === undefined || issues[index][1] !== given || !valid(index, decision, label)) continue;
      decisions[index] = [decision, label];
      mark(index);
      taken += 1;
    }
    undone = [];
    show(current);
    count();
    store();
    const others = rows.length - 1 - taken;
    say(`Imported ${taken} decisions.` + (others ? ` ${others} lines do not fit this page and are left out.` : ""));
  }

  const acts = {
    keep: () => decide("keep", issues[current][1]),
    flip: () => decide("flip", issues[current][2]),
    drop: () => decide("drop", ""),
    unsure: () => decide("unsure", ""),
    next: () => show(Math.min(current + 1, issues.length - 1)),
    previous: () => show(Math.max(current - 1, 0)),
    undo,
    save,
    import: () => byId("file").click(),
  };
  const keys = { k: "keep", f: "flip", d: "drop", u: "unsure", z: "undo", s: "save" };
  Object.assign(keys, { ArrowRight: "next", ArrowDown: "next", ArrowLeft: "previous", ArrowUp: "previous" });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) acts[act]();
    else if (classes.length > 2 && /^[1-9]$/.test(event.key)) flipTo(classes[event.key - 1]);
    else return;
    event.preventDefault();
  });
  document.querySelectorAll("[data-act]").forEach((button) => {
    button.addEventListener("click", () => acts[button.dataset.act]());
  });
  cards.forEach((card, index) => {
    card.addEventListener("click", () => {
      show(index);
      byId("one").focus({ preventScroll: false });
    });
  });
  if (byId("choice")) {
    byId("choice").addEventListener("change", (event) => {
      flipTo(classes[event.target.value]);
      event.target.blur();
    });
  }
  byId("file").addEventListener("change", async (event) => {
    if (event.target.files.length) await load(event.target.files[0]);
    event.target.value = "";
  });

  restore();
  decisions.forEach((_, index) => mark(index));
  show(current);
  count();
})();
