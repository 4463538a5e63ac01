// The viewer of the page. It shows one case at a time, and reads the volumes of a case when that case is opened.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const settings = JSON.parse(byId("viewer-settings").textContent);
  // Axes of a volume, of which the first two run to the patient's right and to the front in niivue.
  const AXES = { sagittal: 0, coronal: 1, axial: 2 };
  const panel = byId("viewer");
  const canvas = byId("canvas");
  const fault = byId("viewer-fault");
  let starting = null;
  let niivueView = null;
  // The card whose viewer is wanted, and what is shown, which follows when the volumes are read.
  let wanted = null;
  let opened = null;

  // The parts of the tumor are numbered from 1, and 0 is clear.
  function colorsOfParts() {
    const rgb = settings.colors.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
    const column = (channel) => [0, ...rgb.map((color) => color[channel])];
    return { R: column(0), G: column(1), B: column(2), A: [0, ...rgb.map(() => 255)], I: [0, 1, 2, 3] };
  }

  async function start() {
    if (document.createElement("canvas").getContext("webgl2") === null) {
      throw new Error("This browser gives no WebGL 2, which the viewer needs; the pictures show the cases.");
    }
    const view = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      fontColor: [1, 1, 1, 1],
      fontMinPx: 20,
      crosshairWidth: 1,
      crosshairColor: [0.9, 0.9, 0.9, 0.6],
      clipPlaneHotKey: "",
      viewModeHotKey: "",
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      loadingText: "",
      logLevel: "warn",
      multiplanarShowRender: 0,
      multiplanarPadPixels: 4,
      onLocationChange: () => tellSlices(),
    });
    await view.attachToCanvas(canvas);
    view.setSliceType(view.sliceTypeMultiplanar);
    niivueView = view;
  }

  async function volume(text, name, colormapLabel) {
    const made = await niivue.NVImage.loadFromBase64({
      base64: text,
      name: `${name}.nii.gz`,
      colormap: "gray",
      cal_min: 0,
      cal_max: 255,
    });
    if (colormapLabel) {
      made.setColormapLabel(colorsOfParts());
    }
    return made;
  }

  async function volumesOf(data) {
    const images = {};
    for (const [name, text] of Object.entries(data.images)) {
      images[name] = await volume(text, name, false);
    }
    const maps = {};
    for (const [name, text] of Object.entries(data.maps)) {
      maps[name] = await volume(text, name, true);
    }
    return { images, maps };
  }

  async function open(card) {
    close();
    fault.hidden = true;
    wanted = card;
    card.append(panel);
    panel.classList.remove("closed");
    card.querySelector("button.open").hidden = true;
    starting ??= start();
    await starting;
    const data = JSON.parse(byId(`${card.id}-volumes`).textContent);
    const { images, maps } = await volumesOf(data);
    if (wanted !== card) {
      return;
    }
    opened = { images, maps, size: data.size, places: data.places };
    showSequenceButtons(data);
    // Both at once would hide where they differ, so the viewer begins with one.
    const begin = "prediction" in maps ? "prediction" : "reference";
    for (const name of ["reference", "prediction"]) {
      byId(`show-${name}`).checked = name === begin && name in maps;
      byId(`show-${name}`).disabled = !(name in maps);
    }
    for (const [plane, axis] of Object.entries(AXES)) {
      byId(`slice-${plane}`).max = data.size[axis];
    }
    show();
    // The slices with most tumor.
    data.center.forEach((index, axis) => moveTo(axis, index + 1));
  }

  function close() {
    if (wanted !== null) {
      wanted.querySelector("button.open").hidden = false;
    }
    wanted = null;
    opened = null;
    panel.classList.add("closed");
  }

  function showSequenceButtons(data) {
    const group = byId("sequences");
    group.querySelectorAll("label").forEach((label) => label.remove());
    Object.keys(data.images).forEach((name) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "sequence", value: name, checked: name === data.first });
      input.addEventListener("change", show);
      label.append(input, settings.titles[name]);
      group.append(label);
    });
  }

  // Volumes that are off are not drawn at all.
  function show() {
    if (opened === null) {
      return;
    }
    const sequence = document.querySelector("input[name=sequence]:checked").value;
    const shown = Object.keys(opened.maps).filter((name) => byId(`show-${name}`).checked);
    const view = niivueView;
    view.volumes = [opened.images[sequence], ...shown.map((name) => opened.maps[name])];
    shown.forEach((name) => {
      opened.maps[name].opacity = byId("opacity").value / 100;
    });
    // This tells the viewer which volume lies below, too.
    view.setVolume(opened.images[sequence], 0);
    tellSlices();
  }

  // A slice counts from 1. The volumes run to the left and to the back, niivue's voxels to the right and to the front.
  function mirrored(axis, index) {
    return axis === AXES.axial ? index : opened.size[axis] - 1 - index;
  }

  function moveTo(axis, slice) {
    const view = niivueView;
    const voxel = Array.from(view.frac2vox(view.scene.crosshairPos));
    voxel[axis] = mirrored(axis, slice - 1);
    view.scene.crosshairPos = view.vox2frac(voxel);
    view.drawScene();
    tellSlices();
  }

  function tellSlices() {
    if (opened === null || niivueView.volumes.length === 0) {
      return;
    }
    const voxel = niivueView.frac2vox(niivueView.scene.crosshairPos);
    for (const [plane, axis] of Object.entries(AXES)) {
      const slice = mirrored(axis, Math.round(voxel[axis])) + 1;
      byId(`slice-${plane}`).value = slice;
      byId(`told-${plane}`).textContent = opened.places[axis][slice - 1];
    }
  }

  function complain(card, error) {
    close();
    fault.textContent = error.message;
    fault.hidden = false;
    card.append(fault);
  }

  for (const button of document.querySelectorAll("button.open")) {
    const card = button.closest("article");
    button.addEventListener("click", () => open(card).catch((error) => complain(card, error)));
  }
  for (const [plane, axis] of Object.entries(AXES)) {
    byId(`slice-${plane}`).addEventListener("input", (event) => moveTo(axis, Number(event.target.value)));
  }
  for (const id of ["show-reference", "show-prediction", "opacity"]) {
    byId(id).addEventListener("input", show);
  }
  byId("close").addEventListener("click", () => {
    const button = wanted?.querySelector("button.open");
    close();
    button?.focus();
  });
})();
