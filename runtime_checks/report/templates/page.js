// A mark says what it is when pointed at, touched, or reached by the arrow keys. Without this script the page lacks only that.
"use strict";
const tip = document.getElementById("tip");
const MARKS = ".role-mark [aria-label]";
let marked = null;

function show(mark) {
  hide();
  marked = mark;
  mark.classList.add("marked");
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  const box = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(box.left + box.width / 2 - own.width / 2, 8), innerWidth - own.width - 8);
  const above = box.top - own.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
}

function hide() {
  marked?.classList.remove("marked");
  marked = null;
  tip.hidden = true;
}

function step(picture, key) {
  const marks = [...picture.querySelectorAll(MARKS)], at = marks.indexOf(marked), last = marks.length - 1;
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[key];
  if (to === undefined || last < 0) return false;
  show(marks[Math.min(Math.max(to, 0), last)]);
  return true;
}

for (const picture of document.querySelectorAll(".picture")) {
  picture.addEventListener("pointerover", (event) => {
    const mark = event.target.closest(MARKS);
    mark ? show(mark) : hide();
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    else if (step(picture, event.key)) event.preventDefault();
  });
}
addEventListener("scroll", hide, { passive: true });
