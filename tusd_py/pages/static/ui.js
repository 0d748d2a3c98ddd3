// What the pages have in common: texts, numbers for people, the configuration of the server, the token.
import { TEXTS } from './texts.js'

const PAUSE = 2000 // milliseconds between two attempts to load the configuration

export const element = (id) => document.getElementById(id)

/** A text by its key, with the values that it names. */
export function text(key, values = {}) {
  return TEXTS[key].replace(/\{(\w+)\}/g, (_, name) => values[name])
}

/** Put the texts into the elements that name them by `data-text`, and into the labels named by `data-label`. */
export function fillTexts() {
  for (const one of document.querySelectorAll('[data-text]')) one.textContent = text(one.dataset.text)
  for (const one of document.querySelectorAll('[data-label]')) one.setAttribute('aria-label', text(one.dataset.label))
}

/** Tell of a change, also to those who do not see the page. */
export function announce(sentence) {
  const status = element('status')
  if (status.textContent !== sentence) status.textContent = sentence
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

/** Ask the server what it tells the pages about itself; null if it cannot be reached. */
export async function askForConfig() {
  try {
    const answer = await fetch(new URL('config.json', import.meta.url))
    if (!answer.ok) return null
    const config = await answer.json()
    return { ...config, endpoint: config.endpoint && new URL(config.endpoint, document.baseURI).href }
  } catch {
    return null
  }
}

/** What the server tells the pages about itself; waits, and says so, until it can be reached. */
export async function loadConfig() {
  for (;;) {
    const config = await askForConfig()
    if (config !== null) {
      announce('')
      element('admin-link').hidden = !config.admin
      return config
    }
    announce(text('unreachable'))
    await pause(PAUSE)
  }
}

export function formatBytes(bytes) {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024
    unit += 1
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`
}

/** Seconds as 0:07, 12:34 or 1:02:03. */
export function formatTime(seconds) {
  const whole = Math.max(0, Math.round(seconds))
  const two = (number) => String(number).padStart(2, '0')
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60]
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`
}

/** Bytes a second over the last seconds. */
export class RateMeter {
  #samples = []

  constructor(window = 5000) {
    this.window = window
  }

  add(bytes, now = performance.now()) {
    const newest = this.#samples.at(-1)
    if (newest && bytes < newest.bytes) this.#samples = [] // the server had stored less than was sent
    this.#samples.push({ now, bytes })
    while (this.#samples.length > 2 && this.#samples[0].now < now - this.window) this.#samples.shift()
  }

  /** Null before there are two samples. */
  get rate() {
    if (this.#samples.length < 2) return null
    const [first, last] = [this.#samples[0], this.#samples.at(-1)]
    return last.now > first.now ? ((last.bytes - first.bytes) * 1000) / (last.now - first.now) : null
  }
}

let token = ''
let onToken = () => {}

/** Send the token with a request of tus-js-client, if there is one. */
export function authorize(request) {
  if (token) request.setHeader('Authorization', `Bearer ${token}`)
}

/** Show the field for the token. */
export function askForToken() {
  const form = element('token-form')
  if (!form.hidden) return
  form.hidden = false
  announce(text('tokenNeeded'))
}

/** Take the token when it is entered, and tell of it. */
export function listenForToken(listener = () => {}) {
  onToken = listener
  element('token-form').addEventListener('submit', (event) => {
    event.preventDefault()
    token = element('token').value.trim()
    element('token').value = ''
    element('token-form').hidden = true
    announce('')
    onToken()
  })
}

/** The sentence of an answer of the server, without its code. */
export function reasonOf(body) {
  return (body ?? '').trim().replace(/^ERR_[A-Z_]+: /, '') || text('noReason')
}

/**
 * The number of this tab, from 0: no other open tab has it, and a reloaded tab keeps it. Tabs would otherwise take over
 * each other's files.
 */
export async function tabNumber(name) {
  if (!navigator.locks) return 0
  const key = `tusd-py-${name}`
  const before = sessionStorage.getItem(key)
  const hold = (number, options) =>
    new Promise((resolve) => {
      navigator.locks
        .request(`${key}-${number}`, options, (lock) => {
          resolve(lock !== null)
          return lock === null ? null : new Promise(() => {}) // held until the tab is closed
        })
        .catch(() => resolve(false))
    })
  if (before !== null && (await hold(before, { signal: AbortSignal.timeout(PAUSE) }))) return Number(before)
  let number = 0
  while (!(await hold(number, { ifAvailable: true }))) number += 1
  sessionStorage.setItem(key, String(number))
  return number
}
