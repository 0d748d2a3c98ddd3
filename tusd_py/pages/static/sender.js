// Sends a local copy to the server while it grows, and never gives up: whatever fails is tried again from the offset
// that the server names. The state is one of waiting, sending, away, token, refused, done.
import { growingReader } from './source.js'
import { askForToken, authorize, reasonOf } from './ui.js'

const CHUNK = 1024 * 1024
const PAUSES = [1000, 2000, 4000, 8000, 15000] // milliseconds; the last one for ever
const SILENCE = 60000 // milliseconds without progress after which a request counts as lost

export class Sender {
  #copy
  #options
  #upload = null
  #failures = 0
  #timer = null
  #watch = null
  #stopped = false

  url = null
  sent = 0 // bytes that the server has acknowledged
  state = 'waiting'
  reason = '' // the sentence of the server, if it refuses

  /** Options: endpoint, url (or null), metadata, onChange(), onUrl(url), onDone(). */
  constructor(copy, options) {
    this.#copy = copy
    this.#options = options
    this.url = options.url
    addEventListener('online', this.hurry)
  }

  start() {
    if (this.#stopped) return
    this.#timer = null
    this.#upload = new window.tus.Upload(this.#copy, {
      // With the URL of an upload and an endpoint, tus-js-client would begin a new upload whenever a proxy answers 502.
      ...(this.url === null ? { endpoint: this.#options.endpoint } : { uploadUrl: this.url }),
      metadata: this.#options.metadata,
      uploadLengthDeferred: true,
      chunkSize: CHUNK,
      fileReader: growingReader,
      fingerprint: async () => null,
      storeFingerprintForResuming: false,
      retryDelays: null,
      onBeforeRequest: (request) => {
        authorize(request)
        this.#expectProgress()
      },
      onAfterResponse: () => this.#expectNothing(),
      onProgress: (bytes) => {
        if (this.#watch !== null) this.#expectProgress()
        this.#tell(bytes < this.#copy.available ? 'sending' : this.state)
      },
      onChunkComplete: (_, accepted) => {
        this.#failures = 0
        this.sent = accepted
        this.#tell(accepted < this.#copy.size ? 'sending' : 'waiting')
      },
      onUploadUrlAvailable: () => {
        this.#take(this.#upload.url)
        this.#tell('waiting')
      },
      onSuccess: ({ lastResponse }) => this.#ended(Number(lastResponse.getHeader('Upload-Offset'))),
      onError: (error) => this.#failed(error),
    })
    this.#upload.start()
  }

  /** Try again now: the network or the token is back. */
  hurry = () => {
    if (this.#timer === null) return
    clearTimeout(this.#timer)
    this.start()
  }

  /** End without a result; nothing is sent from now on. */
  stop() {
    this.#stopped = true
    this.#expectNothing()
    clearTimeout(this.#timer)
    removeEventListener('online', this.hurry)
    this.#upload?.abort()
  }

  #take(url) {
    if (url === this.url) return
    this.url = url
    this.#options.onUrl(url)
  }

  #ended(stored) {
    this.#expectNothing()
    if (!this.#copy.ended || stored < this.#copy.size) {
      this.#beginAgain() // somebody else has ended the upload too early
      return
    }
    this.sent = stored
    this.stop()
    this.#tell('done')
    this.#options.onDone()
  }

  #failed(error) {
    this.#expectNothing()
    const status = error.originalResponse ? error.originalResponse.getStatus() : 0
    const gone = this.url !== null && (status === 404 || status === 410)
    if (gone) {
      this.#beginAgain()
      return
    }
    if (status === 401) askForToken()
    const isLocal = error.causingError instanceof Error // the copy cannot be read
    if (isLocal) this.reason = error.causingError.message
    else this.reason = status === 0 ? '' : reasonOf(error.originalResponse.getBody())
    const isRefused = isLocal || (status >= 400 && status < 500 && ![401, 408, 409, 423, 429].includes(status))
    this.#tell(status === 401 ? 'token' : isRefused ? 'refused' : 'away')
    this.#later()
  }

  /** Send everything once more, to a new upload: the server no longer has the old one. */
  #beginAgain() {
    this.sent = 0
    this.#take(null)
    this.#tell('waiting')
    this.#later()
  }

  #later() {
    if (this.#stopped) return
    const pause = PAUSES[Math.min(this.#failures, PAUSES.length - 1)]
    this.#failures += 1
    this.#timer = setTimeout(() => this.start(), pause)
  }

  #expectProgress() {
    clearTimeout(this.#watch)
    this.#watch = setTimeout(() => {
      this.#watch = null
      this.#upload.abort() // reports nothing from now on
      this.#tell('away')
      this.#later()
    }, SILENCE)
  }

  #expectNothing() {
    clearTimeout(this.#watch)
    this.#watch = null
  }

  #tell(state) {
    this.state = state
    this.#options.onChange()
  }
}
