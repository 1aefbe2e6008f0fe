"use strict";
const form = document.querySelector("form");
const fields = form.elements;
const main = document.querySelector("main");
const groups = [...document.querySelectorAll(".group")].map(element => ({
  element,
  prompt: [element.querySelector("h2"), ...element.querySelectorAll(".prompt .text")],
  list: element.querySelector("ol"),
  items: [...element.querySelectorAll(".item")],
  shown: [],
}));
const total = groups.reduce((sum, group) => sum + group.items.length, 0);
const choices = [...form.querySelectorAll("[data-choice]")];
const flags = [...form.querySelectorAll("[data-flag]")];

const holds = (texts, query) => texts.some(text => text.textContent.toLowerCase().includes(query));

function isWanted(data) {
  for (const choice of choices) {
    if (choice.selectedIndex > 0 && data[choice.dataset.choice] !== choice.value) return false;
  }
  if (flags.some(flag => flag.checked && data[flag.dataset.flag] === undefined)) return false;
  const least = fields.least.valueAsNumber, most = fields.most.valueAsNumber;
  if (Number.isNaN(least) && Number.isNaN(most)) return true;
  const measure = data[form.dataset.measure];
  if (measure === undefined) return false;
  return !(Number(measure) < least) && !(Number(measure) > most);
}

// Compares by the chosen order; an item without a value comes last either way.
function comparison() {
  const asStored = (a, b) => Number(a.dataset.place) - Number(b.dataset.place);
  if (fields.order.selectedIndex === 0) return asStored;
  const [key, way] = fields.order.value.split(", ");
  const sign = way === "lowest first" ? 1 : -1;
  return (a, b) => {
    const [x, y] = [a.dataset[key], b.dataset[key]];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (Number(x) - Number(y));
  };
}

function select(group, query, compare) {
  const inPrompt = !query || holds(group.prompt, query);
  for (const item of group.items) {
    const texts = [...item.querySelectorAll(".text")];
    item.hidden = !isWanted(item.dataset) || !(inPrompt || holds(texts, query));
  }
  group.shown = group.items.filter(item => !item.hidden).sort(compare);
  group.list.append(...group.shown);
  group.element.hidden = group.shown.length === 0;
  if (!query) return;
  for (const folded of group.list.querySelectorAll(".item:not([hidden]) details:not([open])")) {
    folded.open = holds([folded.querySelector(".text")], query);
  }
}

// Groups stand in the order of the first item that each of them shows.
function update() {
  const query = fields.search.value.toLowerCase();
  const compare = comparison();
  for (const group of groups) select(group, query, compare);
  const shown = groups.filter(group => group.shown.length > 0);
  if (fields.order.selectedIndex > 0) shown.sort((a, b) => compare(a.shown[0], b.shown[0]));
  main.append(...shown.map(group => group.element));
  const number = shown.reduce((sum, group) => sum + group.shown.length, 0);
  const ofGroups = `${shown.length} of ${groups.length} groups`;
  fields.count.value = `${number} of ${total} ${main.dataset.items}, ${ofGroups}`;
}

// The group that the reader is at: the focused one if it is in sight, else by the position.
function move(by) {
  const shown = [...main.querySelectorAll(".group:not([hidden])")];
  const box = element => element.getBoundingClientRect();
  const inSight = element => box(element).bottom > 0 && box(element).top < innerHeight;
  const focused = shown.indexOf(document.activeElement.closest(".group"));
  let next = focused + by;
  if (focused < 0 || !inSight(shown[focused])) {
    const below = shown.findIndex(element => box(element).top > 0);
    next = below < 0 ? shown.length - 1 : by > 0 ? below : below - 1;
  }
  if (!shown[next]) return;
  shown[next].focus({preventScroll: true});
  shown[next].scrollIntoView();
}

// Wait for a pause in typing: to filter thousands of items takes longer than a key stroke.
let waiting;
form.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(update, 150);
});
// The fields are emptied only after this event.
form.addEventListener("reset", () => setTimeout(update));
form.addEventListener("submit", event => event.preventDefault());
document.addEventListener("keydown", event => {
  const typing = event.target.closest("input, select") && event.target.type !== "checkbox";
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "j") move(1);
  if (event.key === "k") move(-1);
});
form.hidden = false;
update();
