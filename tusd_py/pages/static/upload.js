// The upload page: Uppy's Dashboard, which goes on after a lost server, a reload and a closed browser.
import { boundsOfCopies } from './kept-files.js'
import { showTabs, tellTabs } from './tabs.js'
import {
  announce,
  askForToken,
  authorize,
  element,
  fillTexts,
  formatBytes,
  listenForToken,
  loadConfig,
  RateMeter,
  reasonOf,
  tabNumber,
  text,
} from './ui.js'

const MEBI = 1024 * 1024
const PARTS = 3 // of a file that is sent in parallel
const PARALLEL_FROM = 8 * MEBI // smaller files gain nothing
const CHUNK = 64 * MEBI // ends a request now and then, so that other tabs get one of the six connections of the browser
const FILES_AT_ONCE = 2
const TEST_FILE = 200 * MEBI
// Half a day: after a loss of the server an upload goes on by itself.
const RETRY_DELAYS = [500, 1000, 2000, 3000, ...Array(8640).fill(5000)]

fillTexts()
const config = await loadConfig()
const { Uppy, Dashboard, Tus, GoldenRetriever } = window.Uppy
const tab = await tabNumber('upload')
const copies = boundsOfCopies(tab)
const uppy = new Uppy({
  id: `upload-${tab}`,
  restrictions: {
    maxFileSize: config.max_size,
    allowedFileTypes: config.allowed_types.length > 0 ? config.allowed_types : null,
  },
})

/** Whether a failed request is sent again: always when the server may be back later. */
function shouldRetry(error) {
  const status = error.originalResponse ? error.originalResponse.getStatus() : 0
  if (status === 401) {
    askForToken()
    return true
  }
  if (status === 0 || status >= 500) awayUntilProgress()
  return status === 0 || status >= 500 || [409, 423, 429].includes(status)
}

uppy
  .use(Dashboard, {
    target: '#dashboard',
    inline: true,
    width: '100%',
    height: 380,
    theme: 'auto',
    note: config.max_size === null ? null : text('uploadLimit', { size: formatBytes(config.max_size) }),
    fileManagerSelectionType: 'both',
    proudlyDisplayPoweredByUppy: false,
    showLinkToFileUploadResult: config.download,
  })
  .use(Tus, {
    endpoint: config.endpoint,
    chunkSize: CHUNK,
    limit: FILES_AT_ONCE,
    removeFingerprintOnSuccess: true,
    retryDelays: RETRY_DELAYS,
    onBeforeRequest: authorize,
    onShouldRetry: shouldRetry,
  })
  .use(GoldenRetriever, { indexedDB: copies })

// Uppy puts the item of a single file into no list, which screen readers need.
new MutationObserver(() => {
  document.querySelector('.uppy-Dashboard-files:not([role])')?.setAttribute('role', 'list')
}).observe(element('dashboard'), { childList: true, subtree: true })

// The state of the server

let isAway = false

function awayUntilProgress() {
  isAway = true
  element('speed').textContent = ''
  announce(text('uploadAway'))
}

uppy.on('upload-progress', () => {
  if (isAway) announce(text('uploadGoesOn'))
  isAway = false
})

// Other tabs

function tell() {
  const running = uppy.getFiles().filter(({ progress }) => progress.uploadStarted && !progress.uploadComplete)
  const uploads = running.map((file) => ({ name: file.name, sent: file.progress.bytesUploaded || 0, size: file.size }))
  tellTabs(tab, uploads)
}

uppy.on('upload-progress', tell)
uppy.on('complete', tell)
uppy.on('file-removed', tell)
addEventListener('pagehide', () => tellTabs(tab, []))
showTabs()

// The speed

let meter = new RateMeter()

function showSpeed() {
  const progress = uppy.getFiles().map((file) => file.progress)
  const running = progress.filter((one) => one.uploadStarted)
  const sum = (name) => running.reduce((total, one) => total + (one[name] || 0), 0)
  const left = sum('bytesTotal') - sum('bytesUploaded')
  if (left === 0 || isAway) meter = new RateMeter()
  else meter.add(sum('bytesUploaded'))
  const { rate } = meter
  element('speed').textContent = rate === null ? '' : text('speed', { rate: formatBytes(rate) })
}

setInterval(showSpeed, 1000)

// Files

uppy.on('file-added', (file) => {
  if (!element('parallel').checked || file.size < PARALLEL_FROM) return
  uppy.setFileState(file.id, { tus: { ...file.tus, parallelUploads: PARTS } })
})

uppy.on('upload-success', (file, { uploadURL }) => {
  announce(text('uploadDone', { name: file.name }))
  const item = document.createElement('li')
  const name = document.createElement(config.download ? 'a' : 'span')
  name.textContent = file.name
  if (config.download) name.href = uploadURL
  item.append(name, ` ${formatBytes(file.size)}`)
  element('finished-items').prepend(item)
  element('finished').hidden = false
})

uppy.on('upload-error', (file, error, response) => {
  const body = response?.body?.xhr?.responseText
  announce(text('uploadFailed', { name: file.name, reason: reasonOf(body) }))
})

uppy.on('restored', () => {
  const files = uppy.getFiles()
  if (files.some((file) => file.isGhost)) announce(text('uploadGhosts'))
  else if (Object.keys(uppy.getState().currentUploads).length > 0 && !files.some((file) => file.isPaused)) {
    announce(text('uploadRestored'))
    uppy.emit('restore-confirmed')
  }
})

// Controls

element('kept-files').textContent = text('keptFiles', { size: formatBytes(copies.maxFileSize) })
element('parallel-text').textContent = text('parallel', { count: PARTS })
element('parallel-label').hidden = !config.concatenation
element('parallel').checked = localStorage.getItem('tusd-py-parallel') === 'true'
element('parallel').addEventListener('change', (event) => {
  localStorage.setItem('tusd-py-parallel', String(event.target.checked))
})

const testFile = element('test-file')
testFile.textContent = text('testFile', { size: formatBytes(TEST_FILE) })
let testFiles = 0
testFile.addEventListener('click', () => {
  testFiles += 1
  const block = crypto.getRandomValues(new Uint8Array(65536))
  const data = new Blob(Array(TEST_FILE / block.length).fill(block))
  uppy.addFile({ name: text('testFileName', { number: testFiles }), type: 'application/octet-stream', data })
})

listenForToken()
