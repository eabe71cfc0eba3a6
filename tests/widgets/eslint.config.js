// The page's programs: names that exist, none unused, and what the joining of the files stands on.
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
      "no-restricted-syntax": [
        "error",
        { selector: "Literal[regex]", message: "The joining of the files does not know regular expressions." },
        { selector: "TemplateLiteral TemplateLiteral", message: "The joining knows no backquotes inside backquotes." },
      ],
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
