// Pictures of one prompt in the whole window, one at a time in the same place, so that flipping
// between them shows the differences.
const zoom = { pictures: [], place: 0 };

function openZoom(pictures, place) {
  zoom.pictures = pictures;
  at("stage").classList.remove("closer");
  showZoomed(place);
  at("zoom").showModal();
}

function showZoomed(place) {
  const count = zoom.pictures.length;
  zoom.place = (place + count) % count;
  const { picture, sample, title } = zoom.pictures[zoom.place];
  const text = `${title}: ${titleOf(page.samples[sample])}`;
  const image = make("img", { alt: text });
  setPicture(image, picture);
  image.addEventListener("click", lookCloser);
  const stage = at("stage");
  const { scrollLeft, scrollTop } = stage;
  stage.replaceChildren(image);
  stage.scrollTo(scrollLeft, scrollTop);
  at("caption").textContent = text;
  at("before").hidden = at("after").hidden = count < 2;
}

function lookCloser(event) {
  const stage = at("stage");
  const image = event.currentTarget;
  const box = image.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width;
  const y = (event.clientY - box.top) / box.height;
  stage.classList.toggle("closer");
  // The point that was clicked on is in the middle.
  stage.scrollTo(
    x * image.offsetWidth - stage.clientWidth / 2,
    y * image.offsetHeight - stage.clientHeight / 2,
  );
}

at("before").addEventListener("click", () => showZoomed(zoom.place - 1));
at("after").addEventListener("click", () => showZoomed(zoom.place + 1));
at("close").addEventListener("click", () => at("zoom").close());
at("zoom").addEventListener("keydown", (event) => {
  // Keeps keys from reaching the page below.
  event.stopPropagation();
  if (event.key === "ArrowLeft") showZoomed(zoom.place - 1);
  else if (event.key === "ArrowRight") showZoomed(zoom.place + 1);
  else if (event.key.toLowerCase() === "z") at("zoom").close();
  else return;
  event.preventDefault();
});
