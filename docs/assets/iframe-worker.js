// Makes the search work on pages that are opened from disk, where browsers refuse workers: runs the script of the worker
// in a hidden frame. The offline plugin of Material loads such a script from another site, unless one of this name exists.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.head.append(frame); // The body may not exist yet.
      this.scope = frame.contentWindow;
      this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = this.scope.document.createElement("script");
      script.src = url;
      this.loaded = new Promise((loaded) => script.addEventListener("load", loaded));
      this.scope.document.head.append(script);
    }

    async postMessage(data) {
      await this.loaded;
      this.scope.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
