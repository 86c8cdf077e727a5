// Voting: two pictures without names, a choice, the next two.
const booth = { sets: sets(), pairs: [], done: new Set(), skipped: new Set(), current: null };

const SHOWN_CHOICE = 160; // Milliseconds.

function currentSet() {
  const found = booth.sets.find((set) => set.title === state.set);
  const students = booth.sets.filter((set) => !set.teacher && set.steps !== undefined);
  return found ?? students.at(-1) ?? booth.sets[0];
}

function nextPair() {
  const left = booth.pairs.filter((pair) => !booth.done.has(pair.key));
  return left.find((pair) => !booth.skipped.has(pair.key)) ?? left[0] ?? null;
}

function showBooth() {
  const set = currentSet();
  at("set").value = set.title;
  booth.pairs = pairsOf(set.contenders);
  booth.done = new Set(state.votes.map((vote) => keyOf(vote.sample, vote.left, vote.right)));
  showPair();
}

function showPair() {
  const count = booth.pairs.filter((pair) => booth.done.has(pair.key)).length;
  at("progress").max = Math.max(1, booth.pairs.length);
  at("progress").value = count;
  at("count").textContent = `${count} of ${booth.pairs.length}`;
  booth.current = nextPair();
  at("booth").hidden = !booth.current;
  at("done").hidden = Boolean(booth.current);
  at("undo").disabled = at("undo_last").hidden = !state.votes.length;
  for (const button of document.querySelectorAll(".download")) {
    button.disabled = !state.votes.length;
  }
  for (const choice of CHOICES) at(choice).classList.remove("chosen");
  if (!booth.current) return;
  at("prompt").textContent = titleOf(page.samples[booth.current.sample]);
  const images = shownPair().map(({ picture, title }, i) => {
    const { button, image } = pictureButton(() => zoomPair(i));
    image.loading = "eager";
    image.alt = title;
    setPicture(image, picture);
    return { button, image };
  });
  at("pair").replaceChildren(...images.map(({ button }) => button));
  waitFor(booth.current, images.map(({ image }) => image));
}

// Choices are disabled until both pictures have loaded.
async function waitFor(pair, images) {
  allowChoices(false);
  at("missing").hidden = true;
  const loaded = await Promise.allSettled(images.map((image) => image.decode()));
  if (booth.current !== pair) return;
  const complete = loaded.every(({ status }) => status === "fulfilled");
  at("missing").hidden = complete;
  allowChoices(complete);
  const following = booth.pairs.filter(({ key }) => key !== pair.key && !booth.done.has(key))[0];
  for (const side of following ? ["left", "right"] : []) {
    setPicture(new Image(), pictureOf(following[side], following.sample));
  }
}

function allowChoices(allowed) {
  for (const choice of CHOICES) at(choice).disabled = !allowed;
}

function choose(choice) {
  if (at(choice).disabled || !booth.current) return;
  const { key, sample, left, right } = booth.current;
  state.votes.push({ sample, left, right, choice, time: new Date().toISOString() });
  booth.done.add(key);
  keepState();
  allowChoices(false);
  at(choice).classList.add("chosen");
  setTimeout(showPair, SHOWN_CHOICE);
}

// The last vote on the current set of pairs: undoing a vote on another set would go unnoticed.
function undo() {
  const asked = new Set(booth.pairs.map(({ key }) => key));
  const last = state.votes.findLastIndex((vote) =>
    asked.has(keyOf(vote.sample, vote.left, vote.right)),
  );
  if (last < 0) return;
  const [{ sample, left, right }] = state.votes.splice(last, 1);
  booth.done.delete(keyOf(sample, left, right));
  keepState();
  showPair();
}

function skip() {
  if (!booth.current) return;
  booth.skipped.add(booth.current.key);
  // If all remaining pairs were skipped, they come again.
  if (booth.pairs.every(({ key }) => booth.done.has(key) || booth.skipped.has(key))) {
    const last = booth.current.key;
    booth.skipped = new Set([last]);
  }
  showPair();
}

// Both pictures with the one they were made from in the middle, equally far from either.
function shownPair() {
  const { sample, left, right } = booth.current;
  return [
    { picture: pictureOf(left, sample), sample, title: "Left" },
    ...sourcesOf(sample),
    { picture: pictureOf(right, sample), sample, title: "Right" },
  ];
}

function zoomPair(place) {
  openZoom(shownPair(), place);
}

const KEYS = {
  ArrowLeft: () => choose("left"),
  ArrowRight: () => choose("right"),
  ArrowDown: () => choose("tie"),
  u: undo,
  s: skip,
  z: () => zoomPair(0),
};

addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  if (at("part_vote").hidden || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  // A key that is held down must not count as a second vote.
  if (!act || event.repeat || (at("booth").hidden && act !== undo)) return;
  event.preventDefault();
  act();
});

for (const choice of CHOICES) at(choice).addEventListener("click", () => choose(choice));
at("undo").addEventListener("click", undo);
at("undo_last").addEventListener("click", undo);
at("skip").addEventListener("click", skip);
at("closer").addEventListener("click", () => zoomPair(0));
at("middle").hidden = !page.sources.length;
at("pair").classList.toggle("three", page.sources.length > 0);
at("set").append(...booth.sets.map(({ title }) => make("option", { value: title }, title)));
at("set").addEventListener("change", (event) => {
  state.set = event.target.value;
  keepState();
  // Takes the focus away, so that arrows are votes again instead of choosing another set.
  event.target.blur();
  showBooth();
});
