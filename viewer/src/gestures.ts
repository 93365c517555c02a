// Wheel, drag and pinch on an element, as changes of a camera.

import type { Camera } from "./camera";

const CLICK_PX = 4; // a pointer that moves less has clicked
const WHEEL = 0.002; // magnification a pixel of the wheel, as an exponent of 2

/** Move a camera by what happens on an element. `moved` is called after each change. */
export function listen(element: HTMLElement, camera: Camera, moved: () => void): void {
  const down = new Map<number, [number, number]>();
  let dragged = false;
  const at = (event: MouseEvent): [number, number] => {
    const box = element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const middle = () => {
    const points = [...down.values()];
    const [x, y] = [0, 1].map((axis) => points.reduce((sum, p) => sum + p[axis], 0) / points.length);
    const apart = points.length > 1 ? Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]) : 0;
    return { x, y, apart };
  };

  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    const line = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    if (event.shiftKey) camera.pan(-line * (event.deltaX || event.deltaY), 0);
    else camera.zoomAt(2 ** (-event.deltaY * line * WHEEL * (event.ctrlKey ? 5 : 1)), ...at(event)); // a touchpad's pinch comes with Control
    moved();
  }, { passive: false });

  element.addEventListener("pointerdown", (event) => {
    if (event.button || down.size > 1) return;
    if (!down.size) dragged = false;
    down.set(event.pointerId, at(event));
  });
  element.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return;
    const before = middle();
    const to = at(event);
    const [x, y] = down.get(event.pointerId)!;
    if (!dragged && down.size === 1 && Math.hypot(to[0] - x, to[1] - y) < CLICK_PX) return;
    if (!dragged) element.setPointerCapture(event.pointerId);
    dragged = true;
    down.set(event.pointerId, to);
    const after = middle();
    camera.pan(after.x - before.x, after.y - before.y);
    if (before.apart && after.apart) camera.zoomAt(after.apart / before.apart, after.x, after.y);
    moved();
  });
  for (const type of ["pointerup", "pointercancel"] as const) element.addEventListener(type, (event) => down.delete(event.pointerId));
  // what was dragged was not clicked
  element.addEventListener("click", (event) => {
    if (dragged) event.stopImmediatePropagation();
    dragged = false;
  }, { capture: true });
}
