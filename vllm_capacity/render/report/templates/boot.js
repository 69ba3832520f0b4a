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

  // A definition that a tile or chart links to opens when the link is followed.
  function open() {
    var target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  }

  window.addEventListener("hashchange", open);
  // Printed folds are open, but for tables of many pages.
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details:not(.long)").forEach(function (fold) {
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
