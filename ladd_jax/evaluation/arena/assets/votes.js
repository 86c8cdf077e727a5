// The votes of this browser, kept under the id of the page's content, since all pages that are
// opened from files may share one store.
const STORE = `ladd_jax arena ${page.id}`;

const CHOICES = ["left", "tie", "right"];

function randomNumbers(count) {
  return [...crypto.getRandomValues(new Uint32Array(count))];
}

function newState() {
  const voter = randomNumbers(4).map((number) => number.toString(16).padStart(8, "0")).join("");
  return { voter, seed: randomNumbers(1)[0], votes: [], set: null, revealed: false };
}

function isVote(vote) {
  const places = page.contenders.length;
  const isPlace = (value, count) => Number.isInteger(value) && value >= 0 && value < count;
  return (
    isPlace(vote?.sample, page.samples.length) &&
    isPlace(vote.left, places) &&
    isPlace(vote.right, places) &&
    CHOICES.includes(vote.choice) &&
    typeof vote.time === "string"
  );
}

function readState() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    if (typeof found?.voter === "string" && Array.isArray(found.votes)) {
      return { ...newState(), ...found, votes: found.votes.filter(isVote) };
    }
  } catch {
    // Either the stored votes are unusable, or nothing can be stored; the next vote shows which.
  }
  return newState();
}

let state = readState();

function keepState() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
    at("unkept").hidden = true;
  } catch {
    at("unkept").hidden = false;
  }
}

// The sets of contenders that may meet: those with one number of steps, or all.
function sets() {
  const found = page.stops.map((stop) => {
    const own = page.contenders.map((_, place) => place);
    const contenders = own.filter((place) =>
      [stop.steps, null].includes(page.contenders[place].steps),
    );
    return { ...stop, contenders };
  });
  const useful = found.filter((set) => set.contenders.length > 1);
  const all = page.contenders.map((_, place) => place);
  const title = page.stops.length ? "any numbers of steps" : "all models";
  if (!useful.some((set) => set.contenders.length === all.length) && all.length > 1) {
    useful.push({ title, teacher: false, contenders: all });
  }
  return useful;
}

// A 32-bit number that depends only on a text and the voter's seed (FNV-1a with a final mix).
function drawn(text) {
  let hash = (state.seed ^ 0x811c9dc5) >>> 0;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

function keyOf(sample, a, b) {
  return `${sample} ${Math.min(a, b)} ${Math.max(a, b)}`;
}

// Every pair of pictures in an order, and on sides, that are random and the same after a reload.
function pairsOf(contenders) {
  const pairs = [];
  for (const sample of page.samples.keys()) {
    const file = (place) => page.contenders[place].pictures[sample][0];
    for (const [i, a] of contenders.entries()) {
      for (const b of contenders.slice(i + 1)) {
        // There is nothing to choose between equal pictures.
        if (file(a) === file(b)) continue;
        const key = keyOf(sample, a, b);
        const [left, right] = drawn(`side ${key}`) & 1 ? [a, b] : [b, a];
        pairs.push({ key, sample, left, right, order: drawn(key) });
      }
    }
  }
  return pairs.sort((one, other) => one.order - other.order || (one.key < other.key ? -1 : 1));
}

function exported() {
  const title = (place) => page.contenders[place].title;
  return {
    format: "ladd_jax votes",
    page: page.id,
    models: page.contenders.map((contender) => contender.title),
    voter: state.voter,
    votes: state.votes.map(({ sample, left, right, choice, time }) => ({
      ...page.samples[sample],
      left: title(left),
      right: title(right),
      choice,
      time,
    })),
  };
}

function download() {
  const text = `${JSON.stringify(exported(), null, 1)}\n`;
  const href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href, download: `votes_${page.id}_${state.voter.slice(0, 8)}.json` }).click();
  // Only released once the browser has begun to save it.
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
