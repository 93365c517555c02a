// One ES module, styles inside, written into the Python package. Its first line carries a hash of the sources:
// tests/test_viewer.py fails where the two have parted.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { defineConfig } from "vite";

const here = import.meta.dirname;

function sourcesHash() {
  const sources = readdirSync(join(here, "src"), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const names = sources.map((entry) => relative(here, join(entry.parentPath, entry.name)).replaceAll(sep, "/"));
  const files = [...names, "package-lock.json", "vite.config.js"];
  const hash = createHash("sha256");
  for (const name of files.sort()) hash.update(`${name}\0`).update(readFileSync(join(here, name))).update("\0");
  return hash.digest("hex");
}

export default defineConfig({
  build: {
    outDir: join(here, "../densitometer/viewer/static"),
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    reportCompressedSize: false,
    rolldownOptions: { output: { minify: true } },
    lib: { entry: join(here, "src/main.ts"), formats: ["es"], fileName: () => "explorer.js" },
  },
  plugins: [
    {
      name: "sources-hash",
      generateBundle(_, bundle) {
        for (const chunk of Object.values(bundle)) {
          if (chunk.type !== "chunk") continue;
          // the bundle is put into a <script> of the self-contained page
          chunk.code = `/*! densitometer explorer, sources sha256 ${sourcesHash()} */\n` + chunk.code.replaceAll("</script", "<\\/script");
        }
      },
    },
  ],
});
