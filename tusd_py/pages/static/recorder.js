// MediaRecorder for sound, or sound and picture: blobs as they come, and the level of the sound.
const TIMESLICE = 1000 // milliseconds between two blobs: a crash of the browser loses no more than that
const TYPES = {
  audio: ['audio/webm;codecs=opus', 'audio/mp4', 'audio/ogg;codecs=opus'],
  video: ['video/webm;codecs=vp8,opus', 'video/webm', 'video/mp4'],
}
const EXTENSIONS = { 'audio/webm': 'webm', 'video/webm': 'webm', 'audio/mp4': 'm4a', 'video/mp4': 'mp4', 'audio/ogg': 'ogg' }

export const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder)

/** The extension of files with a media type. */
export const extensionOf = (type) => EXTENSIONS[type] ?? 'bin'

export class Recorder {
  #recorder
  #stream
  #context = null
  #analyser = null
  #screen = null

  /** Ask for the microphone, and for the camera if `kind` is `video`. Fails as `getUserMedia` does. */
  static async open(kind) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: kind === 'video' })
    return new Recorder(stream, kind)
  }

  constructor(stream, kind) {
    this.#stream = stream
    const mimeType = TYPES[kind].find((type) => MediaRecorder.isTypeSupported(type))
    this.#recorder = new MediaRecorder(stream, mimeType === undefined ? {} : { mimeType })
    this.type = (this.#recorder.mimeType || mimeType || '').split(';')[0] // without the codecs
  }

  get stream() {
    return this.#stream
  }

  /**
   * Start: every blob goes to `onData`, and `onEnd` is called once after the last one. Fails if nothing can be recorded
   * any more, because the microphone was unplugged; the devices are free then.
   */
  start(onData, onEnd) {
    this.#recorder.addEventListener('dataavailable', ({ data }) => {
      if (data.size > 0) onData(data)
    })
    this.#recorder.addEventListener('stop', () => {
      this.#release()
      onEnd()
    })
    for (const track of this.#stream.getTracks()) track.addEventListener('ended', this.stop)
    document.addEventListener('visibilitychange', this.#flush)
    addEventListener('pagehide', this.#flush)
    try {
      this.#recorder.start(TIMESLICE)
    } catch (error) {
      this.#release()
      throw error
    }
    this.#keepAwake()
    this.#measure()
  }

  stop = () => {
    if (this.#recorder.state !== 'inactive') this.#recorder.stop()
  }

  /** The level of the sound, 0 to 1. */
  get level() {
    if (this.#analyser === null) return 0
    const samples = new Float32Array(this.#analyser.fftSize)
    this.#analyser.getFloatTimeDomainData(samples)
    return Math.min(1, Math.max(...samples.map(Math.abs)))
  }

  /** Hand over what the recorder holds: the page may be about to be closed. */
  #flush = () => {
    if (this.#recorder.state === 'recording') this.#recorder.requestData()
    if (document.visibilityState === 'visible') this.#keepAwake()
  }

  #measure() {
    try {
      this.#context = new AudioContext()
      const analyser = this.#context.createAnalyser()
      this.#context.createMediaStreamSource(this.#stream).connect(analyser)
      this.#analyser = analyser
    } catch {
      // No device for sound, or too many contexts: the recording goes on without its level.
    }
  }

  /** Ask the device not to lock its screen: phones end a recording with it. */
  async #keepAwake() {
    try {
      this.#screen = (await navigator.wakeLock?.request('screen')) ?? null
    } catch {
      this.#screen = null // a low battery, for example
    }
  }

  #release() {
    document.removeEventListener('visibilitychange', this.#flush)
    removeEventListener('pagehide', this.#flush)
    for (const track of this.#stream.getTracks()) track.stop()
    this.#analyser = null
    this.#context?.close()
    this.#screen?.release()
  }
}
