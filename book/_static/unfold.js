// The theme lets the keyboard reach what scrolls sideways, but measures only what is unfolded, and again when the window
// changes its size. Unfolding a cell or a solution changes what there is to measure.
for (const event of ["toggle", "click"]) {
  document.addEventListener(event, () => window.dispatchEvent(new Event("resize")), true);
}

// It does not know of figures, which scroll on a phone.
function figures() {
  for (const figure of document.querySelectorAll("div.cell_output figure")) {
    figure.tabIndex = figure.scrollWidth > figure.clientWidth ? 0 : -1;
  }
}
addEventListener("load", figures);
addEventListener("resize", figures);
