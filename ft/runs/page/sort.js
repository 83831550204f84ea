// sort and filter the rows; without it they stand there in their order
const section = document.getElementById("rows");
if (section && section.querySelector(".rows")) {
  const list = section.querySelector(".rows"), more = section.querySelector(".more");
  const rows = [...section.querySelectorAll(".rows > .row, .more > .row")];
  const tools = document.createElement("div");
  const make = (name, values) => Object.assign(document.createElement(name), values);
  const search = make("input", { type: "search", placeholder: "filter by text" });
  search.setAttribute("aria-label", "filter rows by text");
  const order = make("select", {});
  order.setAttribute("aria-label", "order of rows");
  const by = {
    "in their order": () => 0,
    "most gained first": (a, b) => b.dataset.gain - a.dataset.gain,
    "most lost first": (a, b) => a.dataset.gain - b.dataset.gain,
    "longest first": (a, b) => b.dataset.length - a.dataset.length,
    "shortest first": (a, b) => a.dataset.length - b.dataset.length,
  };
  if (!rows.some((row) => Number(row.dataset.gain))) {
    delete by["most gained first"];
    delete by["most lost first"];
  }
  for (const name in by) order.append(make("option", { textContent: name }));
  const marks = new Set(rows.flatMap((row) => row.dataset.marks.split(" ").filter(Boolean)));
  const buttons = [...marks].sort().map((mark) => make("button", { type: "button", textContent: mark }));
  const left = make("span", { className: "note" });
  const show = () => {
    if (more) {
      list.append(...rows);
      more.remove();
    }
    list.append(...[...rows].sort(by[order.value]));
    const wanted = buttons.filter((b) => b.ariaPressed === "true").map((b) => b.textContent);
    const text = search.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      const has = row.dataset.marks.split(" ");
      row.hidden = !wanted.every((mark) => has.includes(mark)) || !row.textContent.toLowerCase().includes(text);
      count += !row.hidden;
    }
    left.textContent = count === rows.length ? "" : `${count} of ${rows.length}`;
  };
  for (const button of buttons) {
    button.ariaPressed = "false";
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
      show();
    });
  }
  search.addEventListener("input", show);
  order.addEventListener("change", show);
  tools.className = "tools";
  tools.append(search, order, ...buttons, left);
  list.before(tools);
}
