// A headless Chromium that does what it is told: each line of standard input is a JSON command for a page, each line of
// standard output the JSON answer to it. Ends with its input.
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { chromium } from 'playwright-core'

const FLAGS = [
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--use-fake-device-for-media-stream',
  '--use-fake-ui-for-media-stream',
  '--autoplay-policy=no-user-gesture-required',
]
const POLL = 50 // milliseconds between two looks at a condition
const AXE = new URL('node_modules/axe-core/axe.min.js', import.meta.url)

const browser = await chromium.launch({ executablePath: process.argv[2], args: FLAGS, chromiumSandbox: false })
const pages = new Map() // by number: the page, and what was seen of it

function observe(page) {
  const seen = { page, requests: [], violations: [], errors: [] }
  page.on('request', (request) => seen.requests.push(request.url()))
  page.on('pageerror', (error) => seen.errors.push(String(error)))
  page.on('console', (message) => {
    if (message.text().includes('Content Security Policy')) seen.violations.push(message.text())
  })
  page.on('dialog', (dialog) => dialog.accept())
  pages.set(pages.size, seen)
  return pages.size - 1
}

const target = (page, { selector, role, name }) => (selector ? page.locator(selector) : page.getByRole(role, { name, exact: true }))

const commands = {
  /** A new page in a context of its own, or in that of another page. */
  async open({ beside, options }) {
    const context = beside === null ? await browser.newContext(options) : pages.get(beside).page.context()
    const number = observe(await context.newPage())
    return number
  },
  async goto({ page }, { url }) {
    return (await page.goto(url))?.status() ?? null // of about:blank
  },
  async reload({ page }) {
    await page.reload()
  },
  async files({ page }, { selector, paths }) {
    await page.locator(selector).first().setInputFiles(paths)
  },
  async click({ page }, where) {
    await target(page, where).click()
  },
  async fill({ page }, { value, ...where }) {
    await target(page, where).fill(value)
  },
  async press({ page }, { key }) {
    await page.keyboard.press(key)
  },
  async value({ page }, { expression }) {
    return page.evaluate(expression)
  },
  /** The first value of an expression that is true. */
  async until({ page }, { expression, timeout }) {
    const end = Date.now() + timeout
    for (;;) {
      const value = await page.evaluate(expression).catch((error) => {
        if (!/context|navigat/i.test(error.message)) throw error
      })
      if (value) return value
      if (Date.now() > end) throw new Error(`${expression} stays false; the page says: ${await page.innerText('body')}`)
      await delay(POLL)
    }
  },
  async throttle({ page }, { bytes_per_second: uploadThroughput }) {
    const session = await page.context().newCDPSession(page)
    await session.send('Network.enable')
    const conditions = { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput }
    await session.send('Network.emulateNetworkConditions', conditions)
  },
  async download({ page }, { path, ...where }) {
    const [download] = await Promise.all([page.waitForEvent('download'), target(page, where).click()])
    await download.saveAs(path)
    return download.suggestedFilename()
  },
  async axe({ page }) {
    await page.evaluate(readFileSync(AXE, 'utf8'))
    const { violations } = await page.evaluate('axe.run()')
    return violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.map((node) => node.html) }))
  },
  async screenshot({ page }, { path }) {
    await page.screenshot({ path, fullPage: true })
  },
  async seen({ requests, violations, errors }) {
    return { requests, violations, errors }
  },
  async close({ page }) {
    await page.close({ runBeforeUnload: false })
    if (page.context().pages().length === 0) await page.context().close()
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { command, page, ...details } = JSON.parse(line)
  let answer
  try {
    const value = page === undefined ? await commands[command](details) : await commands[command](pages.get(page), details)
    answer = { value: value ?? null }
  } catch (error) {
    answer = { error: error.message }
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`)
}
await browser.close()
