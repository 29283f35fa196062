"use strict";
(() => {
  const scroll = document.querySelector(".scroll"), plot = document.querySelector(".plot"), chart = document.querySelector(".chart");
  const names = document.querySelector(".names"), cursor = document.querySelector(".cursor"), readout = document.querySelector(".readout");
  const tools = document.querySelector(".tools"), total = Number(plot.dataset.total);
  let zoom = 1, hot = null;
  const time = us => us < 1e6 ? (us / 1e3).toFixed(us < 1e4 ? 1 : 0) + " ms" : (us / 1e6).toFixed(3) + " s";
  const setZoom = (next, x) => {
    next = Math.min(64, Math.max(1, next));
    const before = plot.clientWidth, at = (scroll.scrollLeft + x) / before;
    zoom = next;
    const room = Math.max(scroll.clientWidth, parseFloat(getComputedStyle(chart).minWidth)) - names.offsetWidth - 16;
    chart.style.width = zoom === 1 ? "" : names.offsetWidth + 16 + room * zoom + "px";
    plot.classList.toggle("zoomed", zoom >= 3);
    scroll.scrollLeft = at * plot.clientWidth - x;
  };
  const middle = () => (scroll.clientWidth - names.offsetWidth) / 2;
  const step = by => setZoom(by === 0 ? 1 : zoom * (by > 0 ? 2 : .5), middle());
  tools.hidden = false;
  tools.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) step(Number(button.dataset.zoom));
  });
  scroll.addEventListener("keydown", event => {
    const by = {"+": 1, "=": 1, "-": -1, "0": 0}[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    step(by);
  });
  scroll.addEventListener("wheel", event => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    setZoom(zoom * (event.deltaY < 0 ? 1.25 : .8), event.clientX - plot.getBoundingClientRect().left - scroll.scrollLeft);
  }, {passive: false});
  const look = event => {
    const box = plot.getBoundingClientRect(), x = event.clientX - box.left;
    if (x < 0 || x > box.width) return leave();
    cursor.hidden = false;
    cursor.style.left = x + "px";
    const path = event.target.closest("path"), title = path && path.querySelector("title");
    if (hot !== path) {
      if (hot) hot.classList.remove("hot");
      hot = title ? path : null;
      if (hot) hot.classList.add("hot");
    }
    readout.textContent = title ? title.textContent : time(x / box.width * total);
  };
  const leave = () => {
    cursor.hidden = true;
    if (hot) hot.classList.remove("hot");
    hot = null;
    readout.textContent = "";
  };
  plot.addEventListener("pointermove", look);
  plot.addEventListener("pointerdown", look);
  plot.addEventListener("pointerleave", leave);
})();
