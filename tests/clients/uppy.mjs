// One upload with Uppy in a headless Chromium, from a page of its own origin: the scenario is JSON on standard input,
// what happened is printed as JSON.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import { chromium } from 'playwright-core'

const FLAGS = [
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

/** A site on a free loopback port with the page, Uppy and the payload. */
async function serveSite(payload) {
  const files = {
    '/': ['text/html', readFileSync(new URL('uppy.html', import.meta.url))],
    '/uppy.min.js': ['text/javascript', readFileSync(new URL('node_modules/uppy/dist/uppy.min.js', import.meta.url))],
    '/payload': ['application/octet-stream', readFileSync(payload)],
  }
  const site = createServer((request, response) => {
    const file = files[request.url]
    if (!file) return response.writeHead(404).end()
    return response.writeHead(200, { 'Content-Type': file[0] }).end(file[1])
  })
  await new Promise((resolve) => {
    site.listen(0, '127.0.0.1', resolve)
  })
  return site
}

async function describe(request) {
  const response = await request.response()
  const headers = response ? response.headers() : {}
  return {
    method: request.method(),
    url: request.url(),
    headers: request.headers(),
    status: response ? response.status() : null,
    answered_offset: headers['upload-offset'] ?? null,
  }
}

/** Make the network slow, so that the upload can be met half-way, and return what makes it fast again. */
async function slowDown(page, bytesPerSecond) {
  const session = await page.context().newCDPSession(page)
  const set = (uploadThroughput) =>
    session.send('Network.emulateNetworkConditions', {
      offline: false,
      latency: 0,
      downloadThroughput: -1,
      uploadThroughput,
    })
  await session.send('Network.enable')
  await set(bytesPerSecond)
  return () => set(-1)
}

/** What the server has stored of the upload, as soon as that is more than nothing. */
async function storedOffset(url) {
  for (;;) {
    const answer = await fetch(url, { method: 'HEAD', headers: { 'Tus-Resumable': '1.0.0' } })
    const offset = Number(answer.headers.get('Upload-Offset'))
    if (offset > 0) return offset
    await delay(50)
  }
}

async function run(browser, origin, scenario) {
  const page = await browser.newPage()
  const requests = []
  page.on('request', (request) => {
    if (!request.url().startsWith(origin)) requests.push(request)
  })
  const settled = (method) =>
    page.waitForEvent('requestfinished', (request) => request.method() === method && !request.url().startsWith(origin))

  await page.goto(origin)
  const speedUp = scenario.bytes_per_second ? await slowDown(page, scenario.bytes_per_second) : null
  await page.evaluate(({ options, tokens }) => window.begin(options, tokens), scenario)

  const result = { urls: [], errors: [], stored_at_pause: null, requests_at_pause: null }
  if (scenario.pause_after) {
    await page.waitForFunction((bytes) => window.uploaded >= bytes, scenario.pause_after)
    await page.evaluate(() => window.uppy.pauseAll())
    result.requests_at_pause = requests.length
    result.stored_at_pause = await storedOffset(requests[requests.length - 1].url())
    await speedUp()
  }
  if (scenario.cancel) {
    const deleted = settled('DELETE')
    await page.evaluate(() => window.uppy.cancelAll())
    await deleted
  } else {
    if (scenario.pause_after) await page.evaluate(() => window.uppy.resumeAll())
    Object.assign(result, await page.evaluate(() => window.outcome))
  }
  result.requests = await Promise.all(requests.map(describe))
  return result
}

const scenario = JSON.parse(await text(process.stdin))
const site = await serveSite(scenario.path)
const browser = await chromium.launch({ executablePath: scenario.chromium, args: FLAGS, chromiumSandbox: false })
try {
  const result = await run(browser, `http://127.0.0.1:${site.address().port}`, scenario)
  process.stdout.write(`${JSON.stringify(result)}\n`)
} finally {
  await browser.close()
  site.closeAllConnections()
  site.close()
}
