// The theme lets the keyboard reach what scrolls sideways, but measures only what is unfolded, and again when the window
// changes its size. Unfolding a cell or a solution changes what there is to measure.
for (const event of ["toggle", "click"]) {
  document.addEventListener(event, () => window.dispatchEvent(new Event("resize")), true);
}
