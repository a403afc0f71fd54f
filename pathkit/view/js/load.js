// Loads BokehJS from the server that sent this page, once; run in the page before a viewer is shown.
(async () => {
  if (window.Bokeh?.version === "VERSION") return;
  const config = document.getElementById("jupyter-config-data");
  const base = config ? JSON.parse(config.textContent).baseUrl : document.body.dataset.baseUrl;
  const load = (name) => new Promise((done, failed) => {
    const script = Object.assign(document.createElement("script"), { src: `${base}pathkit/bokeh/VERSION/${name}`, onload: done, onerror: failed });
    document.head.append(script);
  });
  for (const name of ["bokeh.min.js", "bokeh-widgets.min.js", "bokeh-tables.min.js"]) await load(name);
})().catch(() => (typeof element == "undefined" ? document.body : element).append("pathkit: BokehJS did not load from this Jupyter Server. Set PATHKIT_TILES=kernel before the kernel starts, and run the cell again."));
