"use strict";
const table = document.querySelector("#networks"), dialog = document.querySelector("dialog");

// Sort the table by a column; empty numbers go last in both directions.
for (const button of table.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = table.tBodies[0], column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const numeric = head.classList.contains("num");
  const key = row => { const value = row.cells[column].dataset.value; return numeric ? (value === "" ? NaN : Number(value)) : value; };
  const rows = [...body.rows].map(row => [key(row), row]).sort(([a], [b]) => {
    if (numeric && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);
    return (numeric ? a - b : a.localeCompare(b, "en", {numeric: true})) * (down ? -1 : 1);
  });
  body.append(...rows.map(([, row]) => row));
});

const words = document.querySelector("#filter");
words.addEventListener("input", () => {
  const wanted = words.value.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = [...row.cells].slice(0, 3).map(cell => cell.textContent).join(" ").toLowerCase();
    row.hidden = !wanted.every(word => text.includes(word));
    shown += !row.hidden;
  }
  document.querySelector("#shown").textContent = `${shown} of ${table.tBodies[0].rows.length} shown`;
});

// Each network's page has the URL fragment #network/NAME, so that it can be linked to, and the Back button closes it.
const PREFIX = "#network/";
async function show() {
  const name = location.hash.startsWith(PREFIX) ? decodeURIComponent(location.hash.slice(PREFIX.length)) : null;
  const packed = name === null ? null : [...document.querySelectorAll("template")].find(each => each.dataset.network === name);
  if (!packed) { if (dialog.open) dialog.close(); return; }
  const place = dialog.querySelector("#detail");
  if (typeof DecompressionStream === "undefined") {
    place.textContent = "This browser cannot unpack the page of a network, because it does not support DecompressionStream.";
  } else {
    const bytes = Uint8Array.from(atob(packed.content.textContent.trim()), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    place.innerHTML = await new Response(stream).text();
  }
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  dialog.dataset.network = name;
}
dialog.addEventListener("close", () => {
  if (location.hash.startsWith(PREFIX)) history.replaceState(null, "", location.pathname + location.search);
  delete dialog.dataset.network;
});
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
window.addEventListener("hashchange", show);
show();
