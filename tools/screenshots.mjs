// Pictures of the pages for the README: light, dark and on a phone, into docs/pictures. Run by `make screenshots`; needs
// Chromium and the packages of tests/clients.
import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { chromium } from '../tests/clients/node_modules/playwright-core/index.mjs'

const ROOT = new URL('..', import.meta.url).pathname
const PICTURES = join(ROOT, 'docs/pictures')
const WIDE = { viewport: { width: 1000, height: 750 } }
const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 }
const LOOKS = {
  light: { ...WIDE, colorScheme: 'light' },
  dark: { ...WIDE, colorScheme: 'dark' },
  phone: { ...PHONE, colorScheme: 'light' },
}
const BYTES_PER_SECOND = 4 << 20
const FLAGS = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream', '--disable-gpu', '--no-first-run']
const TOKEN = 'token-of-the-pictures'
// Names, types, lengths and stored bytes.
const UPLOADS = [
  ['oral history 14.wav', 'audio/wav', 9 << 20, 9 << 20],
  ['drone flight.mp4', 'video/mp4', 40 << 20, 23 << 20],
  ['recording 2026-11-27 10.30.00.webm', 'audio/webm', null, 3 << 20],
  ['scans.zip', 'application/zip', 12 << 20, 2 << 20],
]
const PERCENT = /(\d+)%/

/** A server on a free port, and its URL. */
function startServer(folder) {
  const token = join(folder, 'token')
  writeFileSync(token, TOKEN)
  const options = ['--port', '0', '--upload-dir', join(folder, 'uploads'), '--admin-token-file', token]
  const command = [join(ROOT, '.venv/bin/python'), ['-m', 'tusd_py', 'serve', ...options]]
  const server = spawn(...command, { cwd: ROOT, stdio: ['ignore', 'ignore', 'pipe'] })
  const origin = new Promise((resolve, reject) => {
    server.stderr.on('data', (text) => {
      const match = /listening on (http:\/\/[^/\s]+)/.exec(text)
      if (match) resolve(match[1])
    })
    server.on('exit', () => reject(new Error('the server has ended')))
  })
  return { server, origin }
}

/** Wait for a condition; `page.waitForFunction` would need a policy that allows eval. */
async function until(page, expression) {
  while (!(await page.evaluate(expression))) await delay(20)
}

/** An image with some colours, as a file of a camera. */
async function photo(page) {
  const data = await page.evaluate(() => {
    const canvas = Object.assign(document.createElement('canvas'), { width: 640, height: 400 })
    const context = canvas.getContext('2d')
    const sky = context.createLinearGradient(0, 0, 0, 400)
    sky.addColorStop(0, '#3f7fc4')
    sky.addColorStop(1, '#f3d9b1')
    context.fillStyle = sky
    context.fillRect(0, 0, 640, 400)
    for (const [colour, shift, height] of [['#5c6f86', 0, 190], ['#3d4f5f', 90, 140], ['#26333d', -60, 90]]) {
      context.fillStyle = colour
      context.beginPath()
      context.moveTo(0, 400)
      for (let x = 0; x <= 640; x += 8) context.lineTo(x, 400 - height * (0.75 + 0.25 * Math.sin((x + shift) / 55)))
      context.lineTo(640, 400)
      context.fill()
    }
    return canvas.toDataURL('image/png').split(',')[1]
  })
  return { name: 'mountains.png', mimeType: 'image/png', buffer: Buffer.from(data, 'base64') }
}

const STATES = {
  /** Uploads in several states, with the token of administrators. */
  async admin(page, origin) {
    for (const [name, type, length, stored] of UPLOADS.splice(0)) {
      const metadata = `filename ${Buffer.from(name).toString('base64')},filetype ${Buffer.from(type).toString('base64')}`
      const size = length === null ? { 'Upload-Defer-Length': '1' } : { 'Upload-Length': String(length) }
      const headers = { 'Tus-Resumable': '1.0.0', 'Content-Type': 'application/offset+octet-stream' }
      const creation = { ...headers, ...size, 'Upload-Metadata': metadata }
      await fetch(`${origin}/files`, { method: 'POST', headers: creation, body: new Uint8Array(stored) })
    }
    await page.goto(`${origin}/admin`)
    await page.locator('#token').fill(TOKEN)
    await page.keyboard.press('Enter')
    await page.locator('#rows tr').first().waitFor()
  },

  /** Two files, one of them on its way. */
  async upload(page, origin) {
    await page.goto(`${origin}/`)
    await page.locator('.uppy-Dashboard-browse').first().waitFor()
    const film = { name: 'interview.mkv', mimeType: 'video/x-matroska', buffer: Buffer.alloc(40 << 20) }
    await page.locator('input.uppy-Dashboard-input').first().setInputFiles([await photo(page), film])
    await page.locator('.uppy-Dashboard-Item-previewImg').first().waitFor()
    const session = await page.context().newCDPSession(page)
    await session.send('Network.enable')
    const conditions = { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: BYTES_PER_SECOND }
    await session.send('Network.emulateNetworkConditions', conditions)
    await page.click('.uppy-StatusBar-actionBtn--upload')
    for (let percent = 0; percent < 40; ) {
      percent = Number(PERCENT.exec(await page.innerText('.uppy-StatusBar-statusPrimary'))?.[1] ?? 0)
    }
  },

  /** A recording that grows. */
  async record(page, origin) {
    await page.goto(`${origin}/record`)
    await page.locator('#record:enabled').click()
    await until(page, "document.querySelector('#clock').textContent >= '0:05'")
    await until(page, "document.querySelector('#level').ariaValueNow > 5")
  },
}

const folder = mkdtempSync(join(tmpdir(), 'screenshots-'))
const { server, origin } = startServer(folder)
const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS, chromiumSandbox: false })
try {
  mkdirSync(PICTURES, { recursive: true })
  for (const [name, reach] of Object.entries(STATES)) {
    for (const [look, options] of Object.entries(LOOKS)) {
      const context = await browser.newContext(options)
      const page = await context.newPage()
      await reach(page, await origin)
      await page.screenshot({ path: join(PICTURES, `${name}-${look}.png`) })
      await context.close()
      console.log(`docs/pictures/${name}-${look}.png`)
    }
  }
} finally {
  await browser.close()
  server.removeAllListeners('exit')
  server.kill()
  rmSync(folder, { recursive: true })
}
