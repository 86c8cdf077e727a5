"use strict";

const page = JSON.parse(document.getElementById("arena").textContent);

const at = (id) => document.getElementById(id);

const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

// Prompts and names are added as text, never as HTML.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const SMALL = 160; // Pixels: below this, smoothing would hide what the picture is.

const pictureOf = (contender, sample) => page.contenders[contender].pictures[sample];

// A sample's prompt, with the values of conditions if some were given.
const titleOf = ({ prompt, conditions }) => (conditions ? `${prompt} (${conditions})` : prompt);

// What a picture was made of besides its prompt, and how it is called; empty where that is all.
function sourcesOf(sample) {
  const picture = page.sources[sample];
  return picture ? [{ picture, sample, title: "Given picture" }] : [];
}

function setPicture(image, picture) {
  const [file, width, height] = picture;
  image.width = width;
  image.height = height;
  image.className = Math.max(width, height) <= SMALL ? "small" : "";
  image.classList.toggle("source", page.sources.includes(picture));
  image.style.setProperty("--aspect", width / height);
  image.src = `pictures/${file}`;
}

function pictureButton(open) {
  // An image that loads lazily has to be told so before it has a source.
  const image = make("img", { loading: "lazy", decoding: "async", alt: "" });
  const button = make("button", { type: "button", className: "picture" }, image);
  button.addEventListener("click", open);
  return { button, image };
}
