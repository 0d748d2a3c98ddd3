// Requests to the administration API, with the token of the page.
const TOKEN = 'tusd-py-admin-token' // in the session storage, which ends with the tab
const API = new URL('admin/api/', document.baseURI)

/** The stream of uploads. */
export const STREAM = new URL('uploads/events', API)

/** An answer that is no success. */
export class Refused extends Error {
  constructor(status, reason) {
    super(reason)
    this.status = status
  }
}

export const token = () => sessionStorage.getItem(TOKEN) ?? ''
export const useToken = (value) => sessionStorage.setItem(TOKEN, value)
export const forgetToken = () => sessionStorage.removeItem(TOKEN)

/** The header fields that show the token, if there is one. */
export const credentials = () => (token() ? { Authorization: `Bearer ${token()}` } : {})

/** Make a request to the API; parameters that are empty are left out. */
export async function call(method, path, parameters = {}) {
  const url = new URL(path, API)
  for (const [name, value] of Object.entries(parameters)) if (value !== '') url.searchParams.set(name, value)
  const answer = await fetch(url, { method, headers: credentials(), cache: 'no-store' })
  if (answer.status === 204) return null
  const body = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Refused(answer.status, body.detail ?? body.title ?? String(answer.status))
  return body
}
