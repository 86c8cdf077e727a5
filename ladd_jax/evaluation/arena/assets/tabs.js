// The page's introduction, its three tabs, and the results.
const TABS = ["look", "vote", "results"];

function tally() {
  const found = new Map();
  const count = (place, outcome) => {
    if (!found.has(place)) found.set(place, { won: 0, tied: 0, lost: 0 });
    found.get(place)[outcome] += 1;
  };
  for (const { left, right, choice } of state.votes) {
    count(left, { left: "won", tie: "tied", right: "lost" }[choice]);
    count(right, { left: "lost", tie: "tied", right: "won" }[choice]);
  }
  const rows = [...found].map(([place, { won, tied, lost }]) => {
    const rate = (won + tied / 2) / (won + tied + lost);
    return { title: page.contenders[place].title, won, tied, lost, rate };
  });
  return rows.sort((a, b) => b.rate - a.rate);
}

function tallyTable() {
  const cell = (tag, text, name) => make(tag, name ? { className: "name", dir: "auto" } : {}, text);
  const line = (tag, texts) => make("tr", {}, ...texts.map((text, i) => cell(tag, text, i === 0)));
  const rows = tally().map(({ title, won, tied, lost, rate }) =>
    line("td", [title, won, tied, lost, `${(100 * rate).toFixed(1)}%`].map(String)),
  );
  return make("table", {}, line("th", ["model", "won", "tied", "lost", "win rate"]), ...rows);
}

function showResults() {
  const count = state.votes.length;
  const complete = count > 0 && !booth.current;
  const revealed = state.revealed || complete;
  at("tally").textContent = revealed
    ? `${many(count, "vote")}. A tie is half a win.`
    : `${many(count, "vote")}. Names are hidden while you vote.`;
  at("reveal").hidden = revealed;
  at("table").replaceChildren(...(revealed && count ? [tallyTable()] : []));
}

function showTab() {
  const wanted = location.hash.slice(1);
  const usable = TABS.filter((name) => name === "look" || booth.sets.length);
  const shown = usable.includes(wanted) ? wanted : "look";
  // Tabs have other ids than their links' targets, to which the browser would scroll.
  for (const name of TABS) at(`part_${name}`).hidden = name !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    const name = link.hash.slice(1);
    link.hidden = !usable.includes(name);
    if (name === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (booth.sets.length) showBooth();
  showResults();
}

function startPage() {
  const prompts = new Set(page.samples.map((sample) => sample.prompt)).size;
  const models = page.models.length > 1 ? many(page.models.length, "model") : "One model";
  at("about").textContent =
    `${models}, ${many(prompts, "prompt")}, ${many(page.samples.length, "picture")} of each.` +
    (booth.sets.length ? " Vote before you look, and you will not know which is which." : "");
  for (const button of document.querySelectorAll(".download")) {
    button.addEventListener("click", download);
  }
  at("reveal").addEventListener("click", () => {
    state.revealed = true;
    keepState();
    showResults();
  });
  at("anew").addEventListener("click", () => {
    if (!confirm(`${many(state.votes.length, "vote")} will be gone from this browser.`)) return;
    state = newState();
    keepState();
    location.hash = "vote";
    showTab();
  });
  addEventListener("hashchange", showTab);
  addEventListener("storage", (event) => {
    // The same page in another window.
    if (event.key !== STORE) return;
    state = readState();
    showTab();
  });
  showTab();
}

startPage();
