output "function_name" {
  description = "Name of the function, known when it is called on schedule."
  value       = aws_lambda_function.this.function_name
  depends_on  = [aws_cloudwatch_event_target.this, aws_lambda_permission.this]
}

output "log_group" {
  description = "Name of its log: one line of JSON for each thing, and one for each run."
  value       = aws_cloudwatch_log_group.this.name
}
