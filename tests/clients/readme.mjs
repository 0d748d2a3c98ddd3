// The README's snippet for browsers in a headless Chromium: the scenario is JSON on standard input, what happened is
// printed as JSON. After every event the file `scenario.go` is waited for, which the test makes.
import { existsSync, readFileSync, unlinkSync } from 'node:fs'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import { chromium } from 'playwright-core'

const scenario = JSON.parse(await text(process.stdin))
const PAGE = `<!doctype html><input type="file">
<script src="/tus.js"></script>
<script type="importmap">{ "imports": { "tus-js-client": "/module.js" } }</script>
<script type="module" src="/snippet.js"></script>`
const files = {
  '/': ['text/html', PAGE],
  '/tus.js': ['text/javascript', readFileSync(new URL('node_modules/tus-js-client/dist/tus.js', import.meta.url))],
  '/module.js': ['text/javascript', 'export const { Upload } = window.tus'], // what a bundler would do
  '/snippet.js': ['text/javascript', scenario.snippet],
}
const site = createServer((request, response) => {
  const file = files[request.url]
  if (!file) return response.writeHead(404).end()
  return response.writeHead(200, { 'Content-Type': file[0] }).end(file[1])
})
await new Promise((resolve) => {
  site.listen(0, '127.0.0.1', resolve)
})
const origin = `http://127.0.0.1:${site.address().port}`

async function tell(event) {
  process.stdout.write(`${JSON.stringify({ event })}\n`)
  while (!existsSync(scenario.go)) await delay(50)
  unlinkSync(scenario.go)
}

const browser = await chromium.launch({
  executablePath: scenario.chromium,
  args: ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'],
  chromiumSandbox: false,
})
try {
  const page = await browser.newPage()
  const lines = []
  page.on('console', (message) => lines.push(message.text()))
  await page.goto(origin, { waitUntil: 'networkidle' })
  await page.setInputFiles('input', scenario.path)
  await tell('picked')
  if (scenario.reload) {
    await page.reload({ waitUntil: 'networkidle' })
    await page.setInputFiles('input', scenario.path)
    await tell('reloaded')
  }
  while (!lines.some((line) => /^(done|failed): /.test(line))) await delay(50)
  process.stdout.write(`${JSON.stringify({ outcome: lines.find((line) => /^(done|failed): /.test(line)) })}\n`)
} finally {
  await browser.close()
  site.closeAllConnections()
  site.close()
}
