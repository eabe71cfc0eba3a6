// The page's programs: names that exist, none unused, and none twice, as the modules are joined into one.
const page = "document window performance requestAnimationFrame cancelAnimationFrame setTimeout clearTimeout devicePixelRatio";
const classes = "AbortController Blob TextDecoder ImageData Path2D DOMMatrix ResizeObserver createImageBitmap";
const globals = Object.fromEntries(`${page} ${classes}`.split(" ").map((name) => [name, "readonly"]));

export default [
  {
    files: ["**/*.js"],
    languageOptions: { ecmaVersion: 2023, sourceType: "module", globals },
    rules: {
      "no-undef": "error",
      "no-unused-vars": "error",
      "no-shadow": ["error", { hoist: "never", allow: ["h", "page", "name", "stop", "text"] }],
      complexity: ["error", 12],
      eqeqeq: "error",
      "max-len": ["error", { code: 130 }],
      "max-lines": ["error", 250],
      "no-var": "error",
      "prefer-const": "error",
      semi: "error",
    },
  },
];
