
// A form of class "filter" leaves of the pictures or points beside it those that fit.
for (const box of document.querySelectorAll(".explore")) {
  const form = box.querySelector("form");
  const items = [...box.querySelectorAll("[data-true]")];
  const { of, kind, part } = form.elements;
  const fits = ({ true: was, pred, id }) =>
    (of.value === "" || of.value === was || of.value === pred) &&
    (kind.value === "" || kind.value === `${was}-${pred}` ||
      (kind.value === "wrong" && pred !== undefined && pred !== was) ||
      (kind.value === "right" && pred === was)) &&
    id.toLowerCase().includes(part.value.trim().toLowerCase());
  const apply = () => {
    for (const item of items) item.toggleAttribute("hidden", !fits(item.dataset));
    const left = items.filter((item) => !item.hasAttribute("hidden")).length;
    form.querySelector("output").textContent = `${left} of ${items.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
  const svg = box.querySelector("svg.dots");
  if (svg) point(box, svg, items, form);
}

// The point that is nearest to the pointer, or next in the direction of an arrow key, is shown
// beside the map. What comes from file names and labels is set as text only.
function point(box, svg, items, form) {
  const info = box.querySelector(".info"), ring = svg.querySelector(".here");
  const names = new Map([...form.elements.of.options].map((one) => [one.value, one.textContent]));
  const places = items.map((item) => [item.x.baseVal.value, item.y.baseVal.value]);
  let current = -1;

  const nearest = (x, y, allowed = () => true) => {
    let best = -1, least = Infinity;
    places.forEach(([left, top], i) => {
      const far = Math.hypot(left - x, top - y);
      if (far < least && !items[i].hasAttribute("hidden") && allowed(left - x, top - y)) {
        best = i;
        least = far;
      }
    });
    return best;
  };
  const show = (i) => {
    if (i === current) return;
    current = i;
    ring.setAttribute("cx", i < 0 ? -20 : places[i][0]);
    ring.setAttribute("cy", i < 0 ? -20 : places[i][1]);
    info.replaceChildren(...(i < 0 ? [] : describe(items[i].dataset, names)));
  };
  const follow = (event) => {
    const spot = new DOMPoint(event.clientX, event.clientY);
    const { x, y } = spot.matrixTransform(svg.getScreenCTM().inverse());
    show(nearest(x, y, (across, down) => Math.hypot(across, down) < 24));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("keydown", (event) => {
    const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
      ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (event.key === "Escape") show(-1);
    if (!right && !down) return;
    event.preventDefault();
    const [x, y] = current < 0 ? [svg.viewBox.baseVal.width / 2, svg.viewBox.baseVal.height / 2]
      : places[current];
    const ahead = (a, b) => {
      const along = a * right + b * down;
      return along > 0 && along >= Math.abs(a * down) + Math.abs(b * right);
    };
    const next = nearest(x, y, current < 0 ? undefined : ahead);
    if (next >= 0) show(next);
  });
  form.addEventListener("input", () => show(-1));
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "application");
  box.querySelector(".hint").hidden = false;
}

function describe({ id, src, sure, true: was, pred }, names) {
  const line = (tag, text) => {
    const made = document.createElement(tag);
    made.textContent = text;
    return made;
  };
  const lines = [line("strong", id), line("span", `true: ${names.get(was)}`)];
  if (pred === undefined) lines.push(line("span", "not tested"));
  else lines.push(line("span", `predicted: ${names.get(pred)}${sure ? ` (${sure})` : ""}`));
  if (pred !== undefined && pred !== was) lines.push(line("strong", "wrong"));
  const text = document.createElement("div");
  text.append(...lines);
  if (!src) return [text];
  const picture = document.createElement("img");
  picture.src = src;
  picture.alt = "";
  picture.className = src.startsWith("data:image/png") ? "small" : "";
  return [picture, text];
}
