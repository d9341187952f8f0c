"use strict";
// Every table of class "sortable": its column headings become buttons that sort its rows.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent.trim();
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(table, heads, head, column));
  });
}

function sort(table, heads, head, column) {
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
  // Numbers begin with the largest, words with A.
  const before = head.getAttribute("aria-sort");
  const rising = before ? before === "descending" : !numeric;
  const compare = (a, b) => {
    const x = value(a), y = value(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
    return rising ? order : -order;
  };
  rows.sort(compare);
  body.append(...rows);
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
}

// What is wider than its place says so.
const mark = () => {
  for (const box of document.querySelectorAll(".wide, .big"))
    box.classList.toggle("scrolls", box.scrollWidth > box.clientWidth + 1);
};
addEventListener("load", mark);
addEventListener("resize", mark);
