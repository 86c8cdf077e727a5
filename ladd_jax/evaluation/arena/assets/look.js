// All models side by side, with their names.
const look = { stop: Math.max(0, page.stops.findLastIndex((stop) => !stop.teacher)), cells: [] };

const severalSeeds = new Set(page.samples.map((sample) => sample.seed)).size > 1;

function contenderOf(model) {
  return page.models[model].shown[look.stop];
}

function zoomInto(sample, place) {
  const made = page.models.map((_, model) => {
    const contender = contenderOf(model);
    const { title } = page.contenders[contender];
    return { picture: pictureOf(contender, sample), sample, title };
  });
  openZoom([...sourcesOf(sample), ...made], place);
}

function card(sample) {
  const prompt = titleOf(page.samples[sample]);
  const title = make("h3", { dir: "auto" }, prompt);
  if (severalSeeds) title.append(make("small", {}, `seed ${page.samples[sample].seed}`));
  const sources = sourcesOf(sample);
  const given = sources.map(({ picture, title: name }, place) => {
    const { button, image } = pictureButton(() => zoomInto(sample, place));
    setPicture(image, picture);
    image.alt = `${name}: ${prompt}`;
    return make("figure", {}, button, make("figcaption", {}, name));
  });
  const made = page.models.map((_, model) => {
    const { button, image } = pictureButton(() => zoomInto(sample, sources.length + model));
    const caption = make("figcaption");
    look.cells.push({ sample, model, image, caption });
    return make("figure", {}, button, caption);
  });
  const cells = [...given, ...made];
  return make("article", { className: "card" }, title, make("div", { className: "cells" }, ...cells));
}

function showStop(stop) {
  look.stop = stop;
  at("steps").value = stop;
  for (const [i, button] of [...at("stops").children].entries()) {
    button.setAttribute("aria-pressed", i === stop);
  }
  for (const { sample, model, image, caption } of look.cells) {
    const contender = contenderOf(model);
    const { title, model: name, steps } = page.contenders[contender];
    setPicture(image, pictureOf(contender, sample));
    image.alt = `${title}: ${titleOf(page.samples[sample])}`;
    caption.replaceChildren(make("b", { dir: "auto" }, name), steps === null ? "" : many(steps, "step"));
  }
}

function showSize(pixels) {
  const count = page.models.length + sourcesOf(0).length;
  at("size").value = pixels;
  at("cards").style.setProperty("--cell", `${pixels}px`);
  at("cards").style.setProperty("--card", `${count * pixels + (count - 1) * 10 + 28}px`);
}

function showFound() {
  const words = at("find").value.toLowerCase().split(/\s+/u).filter(Boolean);
  let found = 0;
  for (const [i, each] of page.samples.entries()) {
    const text = titleOf(each).toLowerCase();
    const matches = words.every((word) => text.includes(word));
    at("cards").children[i].hidden = !matches;
    found += matches;
  }
  at("none").hidden = found > 0;
}

function startLooking() {
  at("cards").append(...page.samples.map((_, sample) => card(sample)));
  for (const [i, stop] of page.stops.entries()) {
    const text = stop.teacher ? `teacher ${stop.steps}` : String(stop.steps);
    const button = make("button", { type: "button", title: stop.title }, text);
    button.style.setProperty("--place", i / Math.max(1, page.stops.length - 1));
    button.addEventListener("click", () => showStop(i));
    at("stops").append(button);
  }
  at("stepper").hidden = page.stops.length < 2;
  at("steps").max = Math.max(0, page.stops.length - 1);
  at("steps").addEventListener("input", (event) => showStop(event.target.valueAsNumber));
  at("size").addEventListener("input", (event) => showSize(event.target.valueAsNumber));
  at("find").addEventListener("input", showFound);
  const widths = page.contenders.map((contender) => contender.pictures[0][1]);
  showSize(Math.max(...widths) <= SMALL ? 130 : page.models.length < 3 ? 400 : 290);
  showStop(look.stop);
}

startLooking();
