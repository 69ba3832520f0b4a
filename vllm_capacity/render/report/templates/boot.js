"use strict";
(function () {
  document.documentElement.dataset.script = "";  // charts are drawn as wide as their place
  var held = JSON.parse(document.getElementById("charts").textContent);

  function rows(columns) {
    var names = Object.keys(columns);
    var height = names.length ? columns[names[0]].length : 0;
    var made = new Array(height);
    for (var i = 0; i < height; i++) {
      made[i] = {};
      for (var j = 0; j < names.length; j++) made[i][names[j]] = columns[names[j]][i];
    }
    return made;
  }

  // The names of the data sets that a spec, or any part of it, draws.
  function names(part, found) {
    if (part && typeof part === "object") {
      if (part.data && part.data.name) found[part.data.name] = true;
      Object.keys(part).forEach(function (key) { names(part[key], found); });
    }
    return found;
  }

  function draw(box) {
    var spec = held.specs[Number(box.dataset.chart)];
    spec.datasets = {};
    Object.keys(names(spec, {})).forEach(function (name) {
      if (held.data[name]) spec.datasets[name] = rows(held.data[name]);
    });
    return vegaEmbed(box, spec, {
      ast: true,
      renderer: "svg",
      actions: false,
      defaultStyle: false,
      tooltip: { disableDefaultStyle: true, theme: "none" }
    }).then(
      function () { box.parentElement.classList.add("drawn"); },
      function (error) { console.error(error); }  // its still stays, and the others are drawn
    );
  }

  // The heads of a table that can be sorted become buttons; rows without a value stay last.
  function sortable(table) {
    var body = table.tBodies[0];
    Array.prototype.forEach.call(table.tHead.rows[0].cells, function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(button);
      button.addEventListener("click", function () {
        var isNumeric = head.classList.contains("n");
        var order = head.getAttribute("aria-sort") === (isNumeric ? "descending" : "ascending");
        var isDown = order !== isNumeric;
        function key(row) {
          var text = row.cells[column].dataset.key;
          return text === undefined ? null : isNumeric ? Number(text) : text;
        }
        var rows = Array.prototype.slice.call(body.rows);
        rows.sort(function (a, b) {
          var x = key(a), y = key(b);
          if (x === null || y === null) return (x === null) - (y === null);
          var found = isNumeric ? x - y : x.localeCompare(y, "en", { numeric: true });
          return isDown ? -found : found;
        });
        rows.forEach(function (row) { body.appendChild(row); });
        table.querySelectorAll("[aria-sort]").forEach(function (each) { each.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      });
    });
  }
  document.querySelectorAll("table[data-sortable]").forEach(sortable);

  // A definition that a tile or chart links to opens when the link is followed.
  function open() {
    var target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  }

  window.addEventListener("hashchange", open);
  // Printed folds are open, but for tables of many pages.
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll(".with-appendix details:not(.long)").forEach(function (fold) {
      if (!fold.open) { fold.open = true; fold.dataset.printed = ""; }
    });
  });
  window.addEventListener("afterprint", function () {
    document.querySelectorAll("details[data-printed]").forEach(function (fold) {
      fold.open = false;
      delete fold.dataset.printed;
    });
  });
  open();

  // One after the other: the first chart shows while the last is still being drawn.
  Array.prototype.reduce.call(
    document.querySelectorAll(".live[data-chart]"),
    function (before, box) { return before.then(function () { return draw(box); }); },
    Promise.resolve()
  ).then(function () { document.documentElement.dataset.drawn = "all"; });
})();
