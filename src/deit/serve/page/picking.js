// The ways in which an image gets onto the page: chosen, dropped, pasted, photographed.

const find = (id) => document.getElementById(id);

/**
 * @param {(file: File, note?: string) => void} onFile
 * @param {(message: string) => void} onProblem
 */
export function watchForImages(onFile, onProblem) {
  const take = (files, nothing) => {
    if (!files.length) return onProblem(nothing);
    onFile(files[0], files.length > 1 ? `Only the first of ${files.length} files is shown.` : "");
  };
  for (const [button, input] of [["choose", "file"], ["photograph", "photo"]]) {
    find(input).addEventListener("change", ({ target }) => {
      if (target.files.length) take([...target.files], "");
      target.value = ""; // so that the same file can be chosen again
    });
    if (button === "choose") find(button).addEventListener("click", () => find(input).click());
  }
  watchDrops(take);
  watchPastes(take, onProblem);
  watchCamera(onFile, onProblem);
}

function watchDrops(take) {
  const stage = find("stage");
  const carriesFiles = ({ dataTransfer }) => [...(dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // or the browser leaves the page and shows the file
    event.dataTransfer.dropEffect = carriesFiles(event) ? "copy" : "none";
    stage.classList.toggle("over", carriesFiles(event));
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) stage.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    take([...event.dataTransfer.files], "That is no file. Save the image first, then drop the file here.");
  });
}

function watchPastes(take, onProblem) {
  const nothing = "There is no image in the clipboard.";
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length && event.target.matches?.("input, textarea")) return; // text into a field
    event.preventDefault();
    take(files, nothing);
  });
  const button = find("paste");
  button.hidden = !navigator.clipboard?.read;
  button.addEventListener("click", async () => {
    let items;
    try {
      items = await navigator.clipboard.read();
    } catch {
      return onProblem("The browser did not let the page read the clipboard. Try Ctrl+V or Cmd+V.");
    }
    const files = [];
    for (const item of items) {
      const type = item.types.find((name) => name.startsWith("image/"));
      if (type) files.push(new File([await item.getType(type)], `pasted.${type.split("/")[1].split("+")[0]}`, { type }));
    }
    return take(files, nothing);
  });
}

function watchCamera(onFile, onProblem) {
  const dialog = find("camera");
  const video = find("viewfinder");
  let stream = null;
  const stop = () => {
    stream?.getTracks().forEach((track) => track.stop());
    video.srcObject = stream = null;
  };
  const byCamera = () => navigator.mediaDevices?.getUserMedia && !matchMedia("(pointer: coarse)").matches;
  find("photograph").hidden = !byCamera() && !matchMedia("(pointer: coarse)").matches;
  find("photograph").addEventListener("click", async () => {
    if (!byCamera()) return find("photo").click(); // a phone has a camera program of its own
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 }, facingMode: "environment" } });
    } catch (error) {
      return onProblem(
        error.name === "NotAllowedError"
          ? "The browser did not let the page use the camera."
          : "There is no camera that the page can use.",
      );
    }
    video.srcObject = stream;
    dialog.showModal();
    return video.play().catch(() => {}); // closed before it began
  });
  find("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", stop);
  find("shoot").addEventListener("click", () => {
    if (!video.videoWidth) return;
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(
      (blob) => {
        dialog.close();
        if (blob) onFile(new File([blob], "photo.jpg", { type: "image/jpeg" }));
      },
      "image/jpeg",
      0.95,
    );
  });
}
