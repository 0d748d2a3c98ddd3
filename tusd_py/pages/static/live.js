// Live progress of several uploads, by one stream of Server-Sent Events. EventSource could not send a token.
const MAX_UPLOADS = 256 // that one stream is about
const PAUSE = 5000 // milliseconds after a stream that has failed, unless the server names another time
const SILENCE = 60_000 // milliseconds without a byte, after which the connection counts as dead
const END_OF_MESSAGE = '\n\n'

export class LiveUploads {
  #url
  #onMessage
  #stream = null // that is open or being opened
  #pausedUntil = 0

  /** Take the URL of the stream, and what is called with every message. */
  constructor(url, onMessage) {
    this.#url = url
    this.#onMessage = onMessage
  }

  /** Whether messages arrive. */
  get isConnected() {
    return this.#stream?.isConnected ?? false
  }

  /** Follow these uploads with these header fields; a stream that is about all of them goes on. Call again to retry. */
  follow(ids, headers) {
    const key = JSON.stringify(headers)
    const wanted = ids.slice(0, MAX_UPLOADS)
    if (this.#stream && this.#stream.key === key && wanted.every((id) => this.#stream.ids.has(id))) return
    this.stop()
    if (wanted.length === 0 || Date.now() < this.#pausedUntil) return
    this.#open({ key, headers, ids: new Set(wanted), abort: new AbortController(), isConnected: false, retry: null })
  }

  stop() {
    this.#stream?.abort.abort()
    this.#stream = null
  }

  async #open(stream) {
    this.#stream = stream
    let pause = PAUSE
    try {
      await this.#read(stream)
      pause = stream.retry ?? 0
    } catch {
      // The server or the network is away, it has no room for the stream, or that is not wanted any more.
    }
    if (this.#stream !== stream) return
    this.#stream = null
    this.#pausedUntil = Date.now() + pause
  }

  /** Read a stream to its end. */
  async #read(stream) {
    const { headers, abort } = stream
    const query = new URLSearchParams([...stream.ids].map((id) => ['upload', id]))
    const answer = await fetch(`${this.#url}?${query}`, { headers, signal: abort.signal, cache: 'no-store' })
    if (!answer.ok) throw new Error(`the stream was answered ${answer.status}`)
    stream.isConnected = true
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
    let silence = null
    try {
      for (let rest = ''; ; ) {
        silence = setTimeout(() => abort.abort(), SILENCE)
        const { done, value } = await reader.read()
        clearTimeout(silence)
        if (done) return
        const messages = (rest + value).split(END_OF_MESSAGE)
        rest = messages.pop()
        for (const message of messages) this.#take(stream, message)
      }
    } finally {
      clearTimeout(silence)
    }
  }

  #take(stream, message) {
    for (const line of message.split('\n')) {
      if (line.startsWith('retry: ')) stream.retry = Number(line.slice(7))
      if (line.startsWith('data: ') && this.#stream === stream) this.#onMessage(JSON.parse(line.slice(6)))
    }
  }
}
